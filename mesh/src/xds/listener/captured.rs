//! Listeners for redirected connections, which Envoy takes in place of a sidecar.
//!
//! In: chains, each for one destination or for all. Out: the listener that connections are redirected to, which goes by where
//! they were going; and listeners that bind nothing, to which it hands over what was going to their address. Only Envoy gets
//! them: a sidecar asks for what it captures by address.

use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::TrafficDirection as DirectionPb;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::google::protobuf::Any;
use ipnet::IpNet;

use super::listener_filter::{self, inspectors};
use super::{Client, chain, encode_for, inspect, proto};
use crate::model::{FilterChain, Listener, TrafficDirection};
use crate::xds::matching;

/// A listener that connections are redirected to.
#[derive(Debug)]
pub struct Captured<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose connections it takes: an outbound one hands over to [`unbound`] listeners.
    pub direction: TrafficDirection,
    /// Where connections are redirected to; never empty.
    pub addresses: Vec<SocketAddr>,
    /// Each for the connections that were going to an address, or to whichever.
    pub chains: Vec<(Option<IpAddr>, &'a FilterChain)>,
}

impl Captured<'_> {
    /// Writes it. The same listener always gives the same bytes.
    pub fn encode(&self, client: &Client) -> Any {
        let mut addresses =
            self.addresses.iter().map(|at| proto::socket_address(at.ip().to_string(), at.port()));
        let mut message = pb::Listener {
            name: self.name.into(),
            address: addresses.next(),
            additional_addresses: addresses
                .map(|address| pb::AdditionalAddress { address: Some(address), ..Default::default() })
                .collect(),
            filter_chains: self.chains.iter().map(|(to, chain)| self.chain(*to, chain, client)).collect(),
            ..Default::default()
        };
        message.traffic_direction = match self.direction {
            TrafficDirection::Outbound => DirectionPb::Outbound as i32,
            TrafficDirection::Inbound => DirectionPb::Inbound as i32,
        };
        // Nothing of a peer's is ever handed over: where it was going decides about chains alone.
        message.use_original_dst = proto::bool_value(self.direction == TrafficDirection::Outbound);
        // First: `use_original_dst` alone would look last, and never where the client waits for its server to speak.
        let original = proto::any(&OriginalDst::default());
        let mut filters = vec![listener_filter::typed("envoy.filters.listener.original_dst", original)];
        let any = |asks: fn(&FilterChain) -> bool| self.chains.iter().any(|(_, chain)| asks(chain));
        filters.extend(inspectors(any(FilterChain::asks_for_tls), any(FilterChain::asks_for_http)));
        inspect(&mut message, filters);
        proto::any(&message)
    }

    fn chain(&self, to: Option<IpAddr>, chain: &FilterChain, client: &Client) -> pb::FilterChain {
        let mut message = chain::encode(chain, client);
        if let Some(ip) = to {
            message.name = format!("{ip}-{}", chain.name);
            let matches = message.filter_chain_match.get_or_insert_default();
            matches.prefix_ranges = vec![matching::range(IpNet::from(ip))];
        }
        message
    }
}

/// Writes a listener that binds nothing: it takes what an outbound [`Captured`] hands over to its address.
pub fn unbound(listener: &Listener, client: &Client) -> Any {
    let message = pb::Listener { bind_to_port: proto::bool_value(false), ..encode_for(listener, client) };
    proto::any(&message)
}
