//! Clusters without endpoints of their own: each connection goes to the address that its client dialled.
//!
//! In: such a cluster, and an address. Out: a cluster with that one endpoint, whose limits and counters are those of the
//! first. A worker remembers those that it has made, so that connections to one address share a pool; how many, is
//! bounded, since peers choose the ports that they dial.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tulle_mesh::model::{self, Discovery, EndpointAddress, LoadAssignment};

use super::Cluster;

/// The most addresses that a worker remembers without anyone connected to them.
const MOST: usize = 256;

impl Cluster {
    /// Whether it leads wherever the client was going.
    pub(crate) fn is_original_destination(&self) -> bool {
        matches!(self.model.discovery, Discovery::OriginalDestination) && self.endpoints.all.is_empty()
    }

    fn leading_to(self: &Arc<Self>, address: SocketAddr, own: &[IpAddr]) -> Arc<Self> {
        let endpoint = model::Endpoint::new(EndpointAddress::Socket(address));
        let endpoints = LoadAssignment::new("", vec![endpoint]);
        let series = self.state.series.clone();
        Self::build_beside(own, self.model.clone(), Some(&endpoints), Some(self), series)
    }

    /// Whether it was made of `origin` as it is now.
    fn is_made_of(&self, origin: &Self) -> bool {
        Arc::ptr_eq(&self.model, &origin.model) && Arc::ptr_eq(&self.state, &origin.state)
    }
}

/// The clusters of single addresses that one worker has made.
pub(crate) struct Originals {
    /// The workload's own addresses, with capture.
    own: Arc<[IpAddr]>,
    made: RefCell<HashMap<SocketAddr, Arc<Cluster>>>,
}

impl Originals {
    /// None yet, for a workload with these addresses of its own.
    pub(crate) fn new(own: Arc<[IpAddr]>) -> Self {
        Self { own, made: RefCell::default() }
    }

    /// The part of `cluster` that leads to `address`.
    pub(crate) fn of(&self, cluster: &Arc<Cluster>, address: SocketAddr) -> Arc<Cluster> {
        let known = &mut *self.made.borrow_mut();
        if let Some(made) = known.get(&address).filter(|made| made.is_made_of(cluster)) {
            return made.clone();
        }
        if known.len() >= MOST {
            known.retain(|_, made| Arc::strong_count(made) > 1);
        }
        let made = cluster.leading_to(address, &self.own);
        known.insert(address, made.clone());
        made
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::balance::{Limit, Pick};

    #[test]
    fn each_address_has_its_endpoint_and_all_share_the_limits() {
        let cluster = cluster();
        assert!(cluster.is_original_destination());
        let originals = Originals::new(Arc::default());
        let (a, b) = (originals.of(&cluster, at(1)), originals.of(&cluster, at(2)));
        assert!(Arc::ptr_eq(&a, &originals.of(&cluster, at(1))), "made once");
        let pick = Pick { now: Instant::now(), random: 0, hash: None, tried: &[] };
        let endpoint = |cluster: &Cluster| cluster.pick(&pick).expect("it has one").clone();
        assert_eq!((endpoint(&a).address, endpoint(&b).address), (at(1), at(2)));
        assert_ne!(endpoint(&a).id, endpoint(&b).id, "pools go by it");
        assert!(!a.is_original_destination());
        let held = a.permit(Limit::Connections).expect("none is in flight");
        assert!(b.permit(Limit::Connections).is_err(), "there is one for both");
        drop(held);
        // A new version of the configuration is in force at once.
        let next = Cluster::build(Arc::new((*cluster.model).clone()), None, Some(&cluster), Arc::default());
        assert!(!Arc::ptr_eq(&a, &originals.of(&next, at(1))));
    }

    #[test]
    fn who_dials_every_port_costs_no_memory() {
        let (cluster, originals) = (cluster(), Originals::new(Arc::default()));
        let held: Vec<_> = (1..=10).map(|port| originals.of(&cluster, at(port))).collect();
        for port in 1..=u16::MAX {
            drop(originals.of(&cluster, at(port)));
            assert!(originals.made.borrow().len() <= MOST);
        }
        for (port, held) in (1..).zip(&held) {
            assert!(Arc::ptr_eq(held, &originals.of(&cluster, at(port))), "what is in use stays");
        }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn cluster() -> Arc<Cluster> {
        let limits = model::Limits { max_connections: Some(1), ..model::Limits::default() };
        let model = model::Cluster {
            load_balancer: model::LoadBalancer::RoundRobin,
            limits,
            ..model::Cluster::new("inbound|0||", Discovery::OriginalDestination)
        };
        Cluster::build(Arc::new(model), None, None, Arc::default())
    }
}
