//! Listeners.
//!
//! An outbound listener whose only chain takes every connection as HTTP is written as an `api_listener`, the one form that
//! gRPC clients take; all others are written as filter chains. Envoy needs listener filters to see what the chains'
//! conditions ask for, so those are named where they are needed, and only there, since gRPC servers take none.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::Any;

use super::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use super::{Kind, XdsError, proto};
use crate::model::{ChainMatch, FilterChain, Listener, Protocol, TrafficDirection};
use crate::xds::Client;

use self::listener_filter::{Finds, inspectors};

mod access_log;
pub mod captured;
mod chain;
mod chain_match;
mod edge;
mod filters;
mod http;
mod listener_filter;
mod log_filter;
mod rate_limit;
mod rbac;
pub(super) mod replaceable;
mod tcp;
mod tracing;

/// How long Envoy looks at a connection before it goes on with what it knows, so that protocols in which the server
/// speaks first are not held up for long.
const INSPECTION_TIMEOUT: Duration = Duration::from_millis(100);

/// Writes a listener. The same model always gives the same bytes.
pub fn encode(listener: &Listener) -> pb::Listener {
    encode_for(listener, &Client::Sidecar)
}

/// The same in the form that a kind of client takes. Envoy passes over an `api_listener`, so it gets none.
pub fn encode_for(listener: &Listener, client: &Client) -> pb::Listener {
    let direction = match listener.direction {
        TrafficDirection::Inbound => core::TrafficDirection::Inbound,
        TrafficDirection::Outbound => core::TrafficDirection::Outbound,
    };
    let mut message = pb::Listener {
        name: listener.name.clone(),
        address: listener.address.map(|at| proto::socket_address(at.ip().to_string(), at.port())),
        traffic_direction: direction as i32,
        ..Default::default()
    };
    let as_api = match client {
        Client::Envoy(_) => None,
        Client::Sidecar | Client::Grpc => encode_api_listener(listener, client),
    };
    if let Some(manager) = as_api {
        message.api_listener = Some(pb::ApiListener { api_listener: Some(manager) });
    } else {
        let (chains, default) = listener.split_default();
        let encode = |chain| chain::encode(chain, client);
        message.filter_chains = chains.iter().map(encode).collect();
        message.default_filter_chain = default.map(encode);
        // A proxy's header stands before all that the others look at.
        let proxied = listener.proxy_protocol.map(listener_filter::proxy_protocol);
        let inspectors = inspectors(listener.tls_inspector, listener.http_inspector);
        inspect(&mut message, proxied.into_iter().chain(inspectors).collect());
    }
    message
}

/// Reads a listener.
///
/// # Errors
/// When a field is not valid, a filter is not known, or something that Tulle does not do would change what happens to
/// a connection.
pub fn decode(message: pb::Listener) -> Result<Listener, XdsError> {
    let name = message.name.clone();
    decode_listener(message).map_err(|error| error.of(Kind::Listener, &name))
}

fn decode_listener(message: pb::Listener) -> Decoded<Listener> {
    let name = non_empty(message.name, "name")?;
    unsupported(message.filter_chain_matcher.is_some(), "filter_chain_matcher", "use filter_chain_match")?;
    unsupported(message.fcds_config.is_some(), "fcds_config", "list all filter_chains")?;
    unsupported(message.udp_listener_config.is_some(), "udp_listener_config", "only TCP is served")?;
    unsupported(message.listener_specifier.is_some(), "internal_listener", "use an address")?;
    refuse!(message; additional_addresses; switches transparent)?;
    let filters = each("listener_filters", message.listener_filters, listener_filter::decode)?;
    let [tls_inspector, http_inspector] = [Finds::Tls, Finds::Http].map(|finds| filters.contains(&finds));
    let proxy_protocol = filters.into_iter().find_map(|finds| match finds {
        Finds::Client(how) => Some(how),
        Finds::Tls | Finds::Http | Finds::Other => None,
    });
    // What names no direction and is no gRPC client's listener takes connections in.
    let direction = match core::TrafficDirection::try_from(message.traffic_direction) {
        Ok(core::TrafficDirection::Outbound) => TrafficDirection::Outbound,
        Ok(core::TrafficDirection::Unspecified) if message.api_listener.is_some() => {
            TrafficDirection::Outbound
        }
        _ => TrafficDirection::Inbound,
    };
    let address = decode_address(message.address).at("address")?;
    let has_default = message.api_listener.is_none() && message.default_filter_chain.is_some();
    let chains = match message.api_listener {
        Some(api) => {
            let manager = required(api.api_listener, "api_listener").at("api_listener")?;
            vec![decode_api_listener(&manager).at("api_listener.api_listener")?]
        }
        None => decode_chains(message.filter_chains, message.default_filter_chain)?,
    };
    Ok(Listener {
        name,
        direction,
        address,
        chains,
        has_default,
        tls_inspector,
        http_inspector,
        proxy_protocol,
    })
}

/// The name of the chain is the connection manager's prefix for statistics.
fn encode_api_listener(listener: &Listener, client: &Client) -> Option<Any> {
    match listener.chains.as_slice() {
        [FilterChain { name, matches, tls: None, authorization, protocol: Protocol::Http(http) }]
            if listener.direction == TrafficDirection::Outbound
                && *matches == ChainMatch::default()
                && listener.proxy_protocol.is_none()
                && !listener.has_default
                && !listener.tls_inspector
                && !listener.http_inspector
                && authorization.is_empty() =>
        {
            Some(http::encode_any(http, name, client))
        }
        _ => None,
    }
}

fn decode_api_listener(manager: &Any) -> Decoded<FilterChain> {
    if !proto::is::<HttpConnectionManager>(manager) {
        let problem = format!("{:?} is not an HttpConnectionManager", proto::inner_type(manager));
        return Err(FieldError::new(problem));
    }
    let manager: HttpConnectionManager = proto::unpack(manager)?;
    Ok(FilterChain {
        name: manager.stat_prefix.clone(),
        matches: ChainMatch::default(),
        tls: None,
        authorization: Vec::new(),
        protocol: Protocol::Http(http::decode(manager)?),
    })
}

fn decode_chains(
    chains: Vec<pb::FilterChain>,
    default: Option<pb::FilterChain>,
) -> Decoded<Vec<FilterChain>> {
    let mut chains = each("filter_chains", chains, chain::decode)?;
    chain_match::refuse_overlaps(&chains)?;
    if let Some(default) = default {
        let default = chain::decode(default).at("default_filter_chain")?;
        // Whatever its condition says: it is for all that no other takes.
        chains.push(FilterChain { matches: ChainMatch::default(), ..default });
    }
    if chains.is_empty() {
        return Err(FieldError::new("is empty: add a chain, or an api_listener")).at("filter_chains");
    }
    Ok(chains)
}

fn decode_address(address: Option<core::Address>) -> Decoded<Option<SocketAddr>> {
    match address.map(|address| address.address) {
        None => Ok(None),
        Some(Some(core::address::Address::SocketAddress(socket))) => {
            proto::decode_socket_address(socket).at("socket_address").map(Some)
        }
        Some(_) => required(None, "socket_address"),
    }
}

/// Puts listener filters in place: what they look at may never come, so that nothing waits for it for long.
fn inspect(message: &mut pb::Listener, filters: Vec<pb::ListenerFilter>) {
    if filters.is_empty() {
        return;
    }
    message.listener_filters = filters;
    message.listener_filters_timeout = Some(proto::duration(INSPECTION_TIMEOUT));
    message.continue_on_listener_filters_timeout = true;
}
