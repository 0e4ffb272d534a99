//! Which backend of its route a request goes to.
//!
//! In: a route's backends, and what they are chosen by. Out: one of them, and what is known of its session and its hash.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_mesh::model::{Forward, Split};
use tulle_mesh::route::split;

use super::exchange::Exchange;
use super::proxy::Proxy;
use super::{hash, session};
use crate::balance::Cluster;
use crate::snapshot::RouteRuntime;

/// Which backend of its route a request goes to.
pub(super) struct Drawn {
    /// `None` where none has a weight.
    pub(super) at: Option<usize>,
    /// The endpoint that holds its session.
    pub(super) held: Option<SocketAddr>,
    /// What it was chosen by, where that is the request's hash.
    pub(super) hashed: Option<Hashed>,
}

/// What a request is hashed to.
#[derive(Default)]
pub(super) struct Hashed {
    pub(super) hash: Option<u64>,
    /// Makes the client come back with the same hash.
    pub(super) cookie: Option<HeaderValue>,
}

impl Proxy {
    /// Chooses a backend by weight. A session goes before weights, also where its backend has none left (GEP-1619).
    pub(super) fn draw(&self, exchange: &Exchange, runtime: &RouteRuntime, forward: &Forward) -> Drawn {
        let kept = runtime.session.as_ref();
        let kept = kept.and_then(|kept| session::held(kept, &exchange.request.headers, SystemTime::now()));
        let holder = kept.and_then(|address| {
            let holds = |cluster: &Arc<Cluster>| cluster.holds(address);
            runtime.backends.iter().position(|backend| backend.cluster.as_ref().is_some_and(holds))
        });
        let mut hashed = None;
        let at = match &forward.backends[..] {
            _ if holder.is_some() => holder,
            [_] => Some(0),
            backends => {
                let number = match &forward.split {
                    Split::Random => None,
                    Split::Header(name) => number(&exchange.request.headers, name),
                    Split::Hash => hashed.insert(self.hash(exchange, forward)).hash,
                };
                let weights = backends.iter().map(|backend| backend.weight);
                match number {
                    Some(number) => split::choose_at(weights, number),
                    None => split::choose(weights, self.worker.draw()),
                }
            }
        };
        Drawn { at, held: kept.filter(|_| holder.is_some()), hashed }
    }

    /// What the request is hashed to, by its route's policies.
    pub(super) fn hash(&self, exchange: &Exchange, forward: &Forward) -> Hashed {
        let mut hashed = Hashed::default();
        if !forward.hash.is_empty() {
            let (view, client, random) = (exchange.view(), exchange.client_ip(), self.worker.draw_u64());
            hashed.hash = hash::of(&forward.hash, &view, client, random, &mut hashed.cookie);
        }
        hashed
    }
}

/// The one number that a header holds.
fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok()?.trim().parse().ok() }
}
