//! Listeners for all ports of an address: what a sidecar that captures connections takes from peers.
//!
//! In: a workload with an address of its own. Out: the listener `tulle/inbound/<ip>`: the chains of each port that is
//! known (the workload's own, and those that its policies name), each for that port alone, and chains for all other
//! ports. The latter lead to the cluster `inbound|0||`: to whichever port was dialled.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tulle_mesh::address::{captured_listener, sni_host};
use tulle_mesh::model::{FilterChain, Listener, TrafficDirection};

use super::inbound::{Inbound, server_names};
use super::report::Report;
use super::services::Service;
use super::workloads::{Workload, WorkloadPort, Workloads};
use crate::kinds::MtlsMode;

impl Inbound<'_> {
    /// The listener for all ports of `ip`.
    pub(super) fn captured(
        &self,
        workload: &Workload,
        services: &[&Service],
        ip: IpAddr,
        report: &mut Report,
    ) -> Listener {
        let mut chains = Vec::new();
        for (number, port) in self.known_ports(workload, services) {
            let names = server_names(workload, services, &port, SocketAddr::new(ip, number));
            let own = self.chains(workload, services, &port, &names, report);
            chains.extend(own.into_iter().map(|chain| of_port(chain, number)));
        }
        // How peers ask for a port of this address, whatever its number.
        let names = [format!("*._.{}", sni_host(ip))];
        chains.extend(self.chains(workload, services, &any_port(0), &names, report));
        Listener::new(captured_listener(ip), TrafficDirection::Inbound, chains)
    }

    /// Whether peers speak mTLS to the ports of a workload that no manifest names.
    pub(super) fn takes_mtls_on_any_port(&self, workload: &Workload, services: &[&Service]) -> bool {
        workload.is_captured() && self.mode(workload, services, &any_port(0)) != MtlsMode::Disabled
    }

    /// The ports for which something of their own holds, by the number that peers dial. A policy may name a port that the
    /// workload does not declare: it holds there all the same.
    pub(super) fn known_ports(
        &self,
        workload: &Workload,
        services: &[&Service],
    ) -> BTreeMap<u16, WorkloadPort> {
        let mut ports = BTreeMap::new();
        for port in &workload.ports {
            ports.entry(port.mesh).or_insert_with(|| port.clone());
        }
        let policies = self.all_policies(workload, services).into_iter();
        let accepted =
            policies.flat_map(|(_, policy)| policy.spec.ports.iter().map(|exception| exception.port));
        for number in accepted.chain(self.authorizations.ports(workload, services)) {
            if number != 0 && !workload.ports.iter().any(|port| port.number == number) {
                ports.entry(number).or_insert_with(|| any_port(number));
            }
        }
        ports
    }
}

/// The addresses of a workload at which each port is its own: on loopback nothing is captured, and whose a connection to a
/// shared address is, its port does not always tell.
pub(super) fn own_addresses<'a>(
    workload: &'a Workload,
    workloads: &'a Workloads,
) -> impl Iterator<Item = IpAddr> + 'a {
    workload.addresses.iter().copied().filter(|ip| !ip.is_loopback() && !workloads.is_shared(*ip))
}

fn any_port(number: u16) -> WorkloadPort {
    WorkloadPort { name: None, number, mesh: number }
}

fn of_port(mut chain: FilterChain, port: u16) -> FilterChain {
    chain.name = format!("{port}-{}", chain.name);
    chain.matches.destination_port = Some(port);
    chain
}
