//! The settings of the resolver for the application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::args::Settings;
use super::value::{DomainName, LoopbackAddr};
use super::{ConfigError, file};

/// The resolver for the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Where it listens, over UDP and TCP; with 127.0.0.1 on `[::1]` too, where there is one.
    pub listen: SocketAddr,
    /// Who is asked for names outside of the mesh, in this order; `None`: the name servers of `/etc/resolv.conf`.
    pub upstream: Option<Vec<SocketAddr>>,
    /// The end of Services' names.
    pub cluster_domain: DomainName,
}

pub(super) const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);

impl Dns {
    /// The resolver is on when anything is said about it.
    pub(super) fn combine(file: Option<file::Dns>, flags: &Settings) -> Option<Self> {
        let said = file.is_some() || flags.dns.is_some() || !flags.dns_upstream.is_empty();
        let file = file.unwrap_or_default();
        let given = Some(flags.dns_upstream.clone()).filter(|servers| !servers.is_empty());
        said.then(|| Self {
            listen: flags.dns.or(file.listen).map_or(DEFAULT_LISTEN, LoopbackAddr::get),
            upstream: given.or(file.upstream).map(|all| all.into_iter().map(|server| server.0).collect()),
            cluster_domain: flags.cluster_domain.clone().or(file.cluster_domain).unwrap_or_default(),
        })
    }

    /// Whether an address is one that the resolver listens on.
    pub fn is_itself(&self, server: SocketAddr) -> bool {
        let other_family = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), self.listen.port());
        server == self.listen || server == other_family
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.upstream.iter().flatten().find(|server| self.is_itself(**server)) {
            None => Ok(()),
            Some(server) => Err(ConfigError::Conflict {
                field: "dns.upstream",
                reason: format!("{server} is the resolver itself, which would ask itself for ever"),
                fix: "name other servers, or none",
            }),
        }
    }
}
