//! Endpoints: the addresses behind a cluster.

use std::net::SocketAddr;

use serde::Serialize;

use super::PerMillion;
use crate::identity::SpiffeId;

/// The endpoints of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadAssignment {
    /// The name under which it is fetched: that of its cluster.
    pub name: String,
    /// By place.
    pub localities: Vec<LocalityEndpoints>,
    /// How far the usable endpoints of a priority or place may stand in for those that are not, in percent; `None`: 140, by which
    /// it keeps its whole share while 5 in 7 are usable. Never 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overprovisioning: Option<u32>,
    /// Requests that are refused at once, since there are too many: one part after the other of what is left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<DropOverload>,
}

/// A part of the requests that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DropOverload {
    /// What the control plane calls it.
    pub category: String,
    /// Which part.
    pub fraction: PerMillion,
}

impl LoadAssignment {
    /// Endpoints of which no place is known.
    pub fn new(name: impl Into<String>, endpoints: Vec<Endpoint>) -> Self {
        let place = LocalityEndpoints { locality: Locality::default(), priority: 0, weight: 1, endpoints };
        Self { name: name.into(), localities: vec![place], overprovisioning: None, drops: Vec::new() }
    }

    /// All endpoints, whatever their place and health.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.localities.iter().flat_map(|locality| &locality.endpoints)
    }
}

/// The endpoints of one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityEndpoints {
    /// The place.
    pub locality: Locality,
    /// 0 is used before 1, and so on.
    pub priority: u32,
    /// The place's share among those of one priority; 0: nothing, where another has a share.
    pub weight: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A place; parts that are not known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// `eu-west`
    pub region: String,
    /// `eu-west-1a`
    pub zone: String,
    /// A part of a zone.
    pub sub_zone: String,
}

/// One address that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Where else: tried when there is no connection to the first soon. Only beside an IP address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_addresses: Vec<SocketAddr>,
    /// Whether it may be used.
    pub health: Health,
    /// Its share; at least 1.
    pub weight: u32,
    /// Its host name, where it has one; empty else.
    pub hostname: String,
    /// It has a sidecar that ends mesh TLS.
    pub meshed: bool,
    /// The only identity that it may present, so that a recycled address never gets another's requests.
    pub identity: Option<SpiffeId>,
    /// The workload that it is part of (`<namespace>/<name>`), a label in metrics; empty where unknown.
    pub workload: String,
}

impl Endpoint {
    /// A healthy one outside the mesh, with the least share.
    pub fn new(address: EndpointAddress) -> Self {
        Self {
            address,
            additional_addresses: Vec::new(),
            health: Health::Healthy,
            weight: 1,
            hostname: String::new(),
            meshed: false,
            identity: None,
            workload: String::new(),
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointAddress {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A Unix socket's path.
    Pipe(String),
}

/// Whether an endpoint may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Yes.
    Healthy,
    /// No.
    Unhealthy,
    /// Not for new requests.
    Draining,
}
