//! Transparent capture: redirection (`tulle-sidecar init` programs it) brings the workload's connections to two ports of
//! the sidecar, which finds out where each was going.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ConfigError, Settings, file, own};
use crate::redirect::{DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT};

/// Where captured connections arrive, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The port for connections of the application, on loopback of both families.
    pub outbound: u16,
    /// The port for connections of peers, on all addresses of both families.
    pub inbound: u16,
    /// The workload's own addresses, in order; never empty.
    pub addresses: Vec<IpAddr>,
    /// Where the application is probed: the first of them as they are given, a pod's primary one.
    pub primary: IpAddr,
}

impl Capture {
    /// The addresses for captured connections of the application.
    pub fn outbound_addresses(&self) -> [SocketAddr; 2] {
        [
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.outbound),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), self.outbound),
        ]
    }

    /// The addresses for captured connections of peers.
    pub fn inbound_addresses(&self) -> [SocketAddr; 2] {
        [
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.inbound),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), self.inbound),
        ]
    }

    /// Puts flags above the file; `None` without capture.
    ///
    /// # Errors
    /// When a part of it is set where it is off, when both ports are one, or when there is no own address.
    pub(super) fn combine(
        file: Option<file::Capture>,
        flags: &Settings,
    ) -> Result<Option<Self>, ConfigError> {
        if !flags.capture.unwrap_or(file.is_some()) {
            let told = [
                ("capture.outbound", flags.capture_outbound.is_some()),
                ("capture.inbound", flags.capture_inbound.is_some()),
                ("capture.addresses", !flags.addresses.is_empty()),
            ];
            return match told.into_iter().find(|(_, told)| *told) {
                Some((field, _)) => Err(ConfigError::Conflict {
                    field,
                    reason: "it is given, but nothing is captured".into(),
                    fix: "turn capture on with --capture or a section `capture: {}`",
                }),
                None => Ok(None),
            };
        }
        let file = file.unwrap_or_default();
        let addresses = if flags.addresses.is_empty() { file.addresses } else { flags.addresses.clone() };
        let mut addresses: Vec<IpAddr> = addresses.into_iter().map(|address| address.0).collect();
        if addresses.is_empty() {
            addresses = own::global_addresses();
        }
        let Some(primary) = addresses.first().copied() else {
            return Err(ConfigError::Conflict {
                field: "capture.addresses",
                reason: "this host has no address that peers could reach".into(),
                fix: "give it one (`ip address` shows them), or list the workload's addresses",
            });
        };
        addresses.sort_unstable();
        addresses.dedup();
        let capture = Self {
            outbound: flags.capture_outbound.or(file.outbound).unwrap_or(DEFAULT_OUTBOUND_PORT.get()),
            inbound: flags.capture_inbound.or(file.inbound).unwrap_or(DEFAULT_INBOUND_PORT.get()),
            addresses,
            primary,
        };
        if capture.outbound == capture.inbound && capture.outbound != 0 {
            return Err(ConfigError::Conflict {
                field: "capture.inbound",
                reason: format!("{} is already the port of capture.outbound", capture.inbound),
                fix: "give each direction a port of its own",
            });
        }
        Ok(Some(capture))
    }
}
