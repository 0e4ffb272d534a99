//! The delta stream without its ends, for the fuzzer: `fuzz/fuzz_targets/stream.rs`.
//!
//! In: responses. Out: nothing; what must hold after each of them is asserted here, where it can be seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use tulle_mesh::xds::Kind;

use super::cache::{Cache, Names};
use super::client_status::client_config;
use super::subscribe::{Subscriptions, kind_of};

/// The names that are asked for of each type: short, so that the fuzzer finds them.
const NAMES: [&str; 4] = ["a", "b", "c", "a:80"];
/// How many names a listener or its routes may add.
const MORE: usize = 64;
/// The longest reason of a NACK, as a server may have to keep it.
const MAX_REASON: usize = 4096;

/// One stream, and what it has brought.
pub struct Stream {
    cache: Cache,
    subscriptions: Subscriptions,
    wanted: Names,
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// One on which nothing has come.
    pub fn new() -> Self {
        let mut stream = Self {
            cache: Cache::default(),
            subscriptions: Subscriptions::new(Node::default()),
            wanted: Names::default(),
        };
        stream.follow();
        stream
    }

    /// Takes a response, as the engine does.
    ///
    /// # Panics
    /// When something that must hold does not.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) {
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let outcome =
            kind_of(&response).and_then(|kind| self.cache.apply(kind, response, &self.wanted[kind]));
        let rejected = outcome.is_err();
        let answer = self.subscriptions.answer(&type_url, nonce.clone(), outcome);
        assert_eq!((answer.response_nonce, answer.type_url), (nonce, type_url));
        assert_eq!(answer.error_detail.is_some(), rejected);
        assert!(answer.error_detail.is_none_or(|error| error.message.len() <= MAX_REASON));
        assert!(answer.resource_names_subscribe.is_empty() && answer.resource_names_unsubscribe.is_empty());
        self.follow();
        for kind in Kind::ALL {
            for (name, held) in self.cache.held(kind) {
                let wanted = &self.wanted[kind];
                assert!(wanted.contains(name) || held.aliases.iter().any(|alias| wanted.contains(alias)));
            }
        }
        drop(client_config(Node::default(), &self.cache, &self.wanted));
    }

    /// Asks for what is needed, and lets go of all else.
    fn follow(&mut self) {
        let own = || NAMES.iter().map(|name| Arc::from(*name)).collect::<BTreeSet<Arc<str>>>();
        let mut wanted = Names::default();
        for kind in Kind::ALL {
            wanted[kind] = own();
        }
        for name in NAMES {
            if let Some((_, listener)) = self.cache.listener(name) {
                let needs = listener.needs(&self.cache);
                wanted[Kind::Route].extend(needs.routes.into_iter().take(MORE));
                wanted[Kind::Cluster].extend(needs.clusters.into_iter().take(MORE));
            }
        }
        self.wanted = wanted;
        self.cache.prune(&self.wanted);
        let requests = self.subscriptions.requests(&self.wanted, |kind| self.cache.versions(kind));
        assert!(requests.len() <= Kind::ALL.len());
    }
}
