//! The names under which configuration travels: services, listeners and clusters.
//!
//! Text from xDS and manifests comes in; typed names go out, and print back to the same text. One place knows the
//! grammar, so that the control plane and the sidecar can't drift apart.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A port of a service, `<fqdn>:<port>`: the name of an outbound listener, and of a gRPC target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// The service's whole name, lower case, without a trailing dot.
    pub fqdn: Arc<str>,
    /// The service's port, not that of its pods.
    pub port: u16,
}

impl ServicePort {
    /// Names a port of a service.
    pub fn new(fqdn: impl Into<Arc<str>>, port: u16) -> Self {
        Self { fqdn: fqdn.into(), port }
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.fqdn, self.port)
    }
}

impl FromStr for ServicePort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.into(), expected: "<name>:<port>" };
        let (fqdn, port) = text.rsplit_once(':').ok_or_else(error)?;
        if fqdn.is_empty() {
            return Err(error());
        }
        Ok(Self::new(fqdn, port.parse().map_err(|_| error())?))
    }
}

/// The name of a cluster, and of its endpoints and (with an empty subset) of the service's route configuration:
/// `outbound|<port>|<subset>|<fqdn>` or `inbound|<port>||`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterName {
    /// Endpoints of a service somewhere in the mesh.
    Outbound {
        /// The service and its port.
        service: ServicePort,
        /// A named part of the service's endpoints; empty for all of them.
        subset: Arc<str>,
    },
    /// The application behind this sidecar, on the port that it serves.
    Inbound {
        /// The port that peers address; 0: whichever that is.
        port: u16,
    },
}

impl ClusterName {
    /// The cluster that holds all endpoints of a service.
    pub fn outbound(service: ServicePort) -> Self {
        Self::Outbound { service, subset: "".into() }
    }

    /// The SNI under which a client asks a peer's sidecar for this cluster: `outbound_.<port>_.<subset>_.<fqdn>`, where an
    /// IP address stands as [`sni_host`] has it. It is how the server end tells mesh TLS from the application's own TLS.
    pub fn sni(&self) -> String {
        match self {
            Self::Outbound { service, subset } => {
                let host = service.fqdn.parse().map_or_else(|_| service.fqdn.to_string(), sni_host);
                format!("outbound_.{}_.{subset}_.{host}", service.port)
            }
            Self::Inbound { port } => format!("inbound_.{port}_._."),
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbound { service, subset } => {
                write!(f, "outbound|{}|{subset}|{}", service.port, service.fqdn)
            }
            Self::Inbound { port } => write!(f, "inbound|{port}||"),
        }
    }
}

impl FromStr for ClusterName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError {
            text: text.into(),
            expected: "outbound|<port>|<subset>|<fqdn> or inbound|<port>||",
        };
        let mut parts = text.split('|');
        let mut next = || parts.next().ok_or_else(error);
        let (direction, port, subset, fqdn) = (next()?, next()?, next()?, next()?);
        let port = port.parse().map_err(|_| error())?;
        if parts.next().is_some() {
            return Err(error());
        }
        match direction {
            "outbound" if !fqdn.is_empty() => {
                Ok(Self::Outbound { service: ServicePort::new(fqdn, port), subset: subset.into() })
            }
            "inbound" if fqdn.is_empty() && subset.is_empty() => Ok(Self::Inbound { port }),
            _ => Err(error()),
        }
    }
}

impl Serialize for ClusterName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How an address stands in an SNI, `10-0-0-1.ip`: a server name may hold no address (RFC 6066, section 3), so TLS
/// libraries take none that has a colon or ends in a number, and would send none at all.
pub fn sni_host(ip: IpAddr) -> String {
    let parts: Vec<String> = match ip {
        IpAddr::V4(ip) => ip.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(ip) => ip.segments().iter().map(|segment| format!("{segment:x}")).collect(),
    };
    format!("{}.ip", parts.join("-"))
}

/// The name of the listener that serves `address` of a workload: `tulle/inbound/<ip>:<port>`.
pub fn inbound_listener(address: SocketAddr) -> String {
    format!("{INBOUND_PREFIX}{address}")
}

/// The address in the name of an inbound listener, or `None` for any other name.
pub fn parse_inbound_listener(name: &str) -> Option<SocketAddr> {
    name.strip_prefix(INBOUND_PREFIX)?.parse().ok()
}

/// The name of the listener that serves all ports of a workload's address, for a sidecar that captures its connections:
/// `tulle/inbound/<ip>`.
pub fn captured_listener(ip: IpAddr) -> String {
    format!("{INBOUND_PREFIX}{ip}")
}

/// The name of the outbound listener for all ports of a workload's address that no manifest names: `<ip>:0`. The aliases by
/// which it is asked for are the addresses that applications dial.
pub fn any_port_listener(ip: IpAddr) -> String {
    SocketAddr::new(ip, 0).to_string()
}

/// Whether a name is that of a listener for all ports of an address.
pub fn is_any_port_listener(name: &str) -> bool {
    name.ends_with(":0") && name.parse::<SocketAddr>().is_ok()
}

/// The address in the name of a listener for captured connections, or `None` for any other name.
pub fn parse_captured_listener(name: &str) -> Option<IpAddr> {
    name.strip_prefix(INBOUND_PREFIX)?.parse().ok()
}

const INBOUND_PREFIX: &str = "tulle/inbound/";

/// A name that does not follow its grammar. The fault is that of whoever sent it; trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    /// What was given.
    pub text: String,
    /// The form that it should have.
    pub expected: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not of the form {}", self.text, self.expected)
    }
}

impl std::error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_what_they_parsed() {
        for name in ["outbound|80||cart.shop.svc.cluster.local", "outbound|80|v1|a.b", "inbound|8080||"] {
            assert_eq!(name.parse::<ClusterName>().expect("valid").to_string(), name);
        }
        for name in [
            "outbound|80||",
            "inbound|1||x",
            "outbound|x||a",
            "outbound|80|a",
            "",
            "a|1||b",
            "outbound|1||a|b",
        ] {
            assert!(name.parse::<ClusterName>().is_err(), "{name}");
        }
        let service: ServicePort = "cart.shop:80".parse().expect("valid");
        assert_eq!(service, ServicePort::new("cart.shop", 80));
        assert!(":80".parse::<ServicePort>().is_err());
    }

    #[test]
    fn a_server_name_never_looks_like_an_address() {
        for (cluster, sni) in [
            ("outbound|80||cart.shop", "outbound_.80_._.cart.shop"),
            ("outbound|80|v1|cart.shop", "outbound_.80_.v1_.cart.shop"),
            ("outbound|5432||10.77.0.3", "outbound_.5432_._.10-77-0-3.ip"),
            ("outbound|5432||fd77::3", "outbound_.5432_._.fd77-0-0-0-0-0-0-3.ip"),
        ] {
            assert_eq!(cluster.parse::<ClusterName>().expect("valid").sni(), sni);
        }
    }

    #[test]
    fn an_inbound_listener_is_named_after_its_address() {
        for address in ["10.0.0.1:8080", "[fd00::1]:80"] {
            let address: SocketAddr = address.parse().expect("valid");
            assert_eq!(parse_inbound_listener(&inbound_listener(address)), Some(address));
        }
        assert_eq!(parse_inbound_listener("cart.shop:80"), None);
        for ip in ["10.0.0.1", "fd00::1"] {
            let name = captured_listener(ip.parse().expect("valid"));
            assert_eq!(
                (parse_captured_listener(&name), parse_inbound_listener(&name)),
                (ip.parse().ok(), None)
            );
        }
        assert_eq!(parse_captured_listener("tulle/inbound/10.0.0.1:8080"), None);
    }
}
