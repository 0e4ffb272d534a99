//! Aliases that change hands: an address belongs to one listener at a time, whatever the order in which that is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as Wire};
use tulle_mesh::model::{RouteSource, TrafficDirection};
use tulle_mesh::xds::{Kind, Resource};

use super::{Cache, Knowledge};
use crate::xds::fixtures::http_listener;
use crate::xds::testing::wire;

const CART: &str = "cart.shop.svc.cluster.local:80";
const STOCK: &str = "stock.shop.svc.cluster.local:80";
const ONE: &str = "10.96.0.1:80";
const TWO: &str = "10.96.0.2:80";

fn listener(name: &str, aliases: &[&str]) -> Wire {
    let routes = RouteSource::Named("routes".into());
    let listener = http_listener(name, TrafficDirection::Outbound, routes);
    Wire { aliases: aliases.iter().map(ToString::to_string).collect(), ..wire(&Resource::Listener(listener)) }
}

/// A cache that wants both addresses, after these responses: resources, and names that are gone.
fn after(responses: &[(&[Wire], &[&str])]) -> Cache {
    let wanted: BTreeSet<Arc<str>> = [ONE, TWO].map(Arc::from).into();
    let mut cache = Cache::default();
    for (resources, removed) in responses {
        let response = DeltaDiscoveryResponse {
            resources: resources.to_vec(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        cache.apply(Kind::Listener, response, &wanted).expect("all of it is good");
    }
    cache
}

fn owner<'a>(cache: &'a Cache, address: &str) -> Option<&'a str> {
    cache.listener(address).map(|(name, _)| &**name)
}

#[test]
fn two_listeners_change_places_in_either_order() {
    let before: &[Wire] = &[listener(CART, &[ONE]), listener(STOCK, &[TWO])];
    let mut swap = [listener(CART, &[TWO]), listener(STOCK, &[ONE])];
    for _ in 0..2 {
        swap.reverse();
        for responses in
            [vec![(before, &[][..]), (&swap, &[])], vec![(before, &[]), (&swap[..1], &[]), (&swap[1..], &[])]]
        {
            let cache = after(&responses);
            assert_eq!((owner(&cache, ONE), owner(&cache, TWO)), (Some(STOCK), Some(CART)));
        }
    }
}

#[test]
fn a_listener_that_goes_takes_no_address_that_another_has_by_now() {
    let before: &[Wire] = &[listener(CART, &[ONE, TWO])];
    let after_it: &[Wire] = &[listener(STOCK, &[ONE])];
    let cache = after(&[(before, &[]), (after_it, &[CART])]);
    assert_eq!((owner(&cache, ONE), owner(&cache, TWO)), (Some(STOCK), None));
    // Of the other one it is known that nobody has it.
    assert_eq!(cache.knowledge(Kind::Listener, TWO), Knowledge::Absent);
}

#[test]
fn an_address_that_is_gone_may_come_back_to_another() {
    let before: &[Wire] = &[listener(CART, &[ONE, TWO])];
    let other: &[Wire] = &[listener(STOCK, &[ONE])];
    let cache = after(&[(before, &[]), (&[], &[ONE])]);
    assert_eq!(cache.knowledge(Kind::Listener, ONE), Knowledge::Absent);
    assert_eq!(owner(&cache, TWO), Some(CART));
    let cache = after(&[(before, &[]), (&[], &[ONE]), (other, &[]), (&[], &[CART])]);
    assert_eq!((owner(&cache, ONE), owner(&cache, TWO)), (Some(STOCK), None));
}
