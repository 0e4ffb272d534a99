//! What kind of client asks, by what its node says of itself, and how what it gets differs.
//!
//! Sidecars, Envoy and gRPC get the same routes and endpoints, and clusters that differ in their TLS settings alone: where the
//! workload's certificate is, and who may answer. Sidecars pin an identity on each endpoint, gRPC and Envoy know no such
//! thing and get the identities of all endpoints of a cluster. Listeners differ in form. A node's word decides only about forms,
//! never about what its caller may see.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;

/// The key in Envoy's node metadata for the folder that `tulle certs` keeps.
pub const CERTIFICATES: &str = "TULLE_CERTS";
/// The key in Envoy's node metadata for the address of the workload that it serves.
pub const ADDRESS: &str = "TULLE_ADDRESS";
/// The key in Envoy's node metadata that says that connections are redirected to it; its value is what becomes of those that
/// go to where the mesh knows nothing, an [`OutboundPolicy`].
pub const CAPTURE: &str = "TULLE_CAPTURE";
/// Where Envoy's certificates are if its node does not say.
pub const DEFAULT_CERTIFICATES: &str = "/etc/tulle/certs";

/// The longest path that is believed, in bytes.
const MAX_PATH: usize = 1024;

/// A kind of client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Client {
    /// Ours, and any that is none of the others.
    #[default]
    Sidecar,
    /// Proxyless gRPC.
    Grpc,
    /// Envoy.
    Envoy(Envoy),
}

/// What an Envoy says of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    /// The folder of its certificates.
    pub certificates: String,
    /// The address of the workload that it takes connections for; `None`: of none.
    pub address: Option<IpAddr>,
    /// Connections are redirected to it, and this becomes of those that go to where the mesh knows nothing; `None`: none are.
    pub capture: Option<OutboundPolicy>,
}

/// What becomes of a redirected connection to where the mesh knows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// It passes as it is.
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

impl OutboundPolicy {
    /// As a node and a sidecar's configuration have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowAny => "AllowAny",
            Self::RegistryOnly => "RegistryOnly",
        }
    }

    /// Whatever is not known is the strictest.
    fn of(text: &str) -> Self {
        if text == Self::AllowAny.as_str() { Self::AllowAny } else { Self::RegistryOnly }
    }
}

impl Client {
    /// The kind of client that a node is.
    pub fn of(node: &Node) -> Self {
        if node.user_agent_name.starts_with("gRPC") {
            return Self::Grpc;
        }
        if node.user_agent_name != "envoy" {
            return Self::Sidecar;
        }
        let text = |key: &str| {
            let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
            match value.and_then(|value| value.kind.as_ref()) {
                Some(ValueKind::StringValue(text)) => Some(text.as_str()),
                _ => None,
            }
        };
        let certificates = text(CERTIFICATES).filter(|path| path.len() <= MAX_PATH);
        Self::Envoy(Envoy {
            certificates: certificates.unwrap_or(DEFAULT_CERTIFICATES).into(),
            address: text(ADDRESS).and_then(|address| address.parse().ok()),
            capture: text(CAPTURE).map(OutboundPolicy::of),
        })
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{Struct, Value};

    use super::*;

    fn node(agent: &str, metadata: &[(&str, &str)]) -> Node {
        let text = |text: &str| Value { kind: Some(ValueKind::StringValue(text.into())) };
        let fields = metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
        Node { user_agent_name: agent.into(), metadata: Some(Struct { fields }), ..Default::default() }
    }

    fn envoy(metadata: &[(&str, &str)]) -> Envoy {
        match Client::of(&node("envoy", metadata)) {
            Client::Envoy(envoy) => envoy,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_client_is_known_by_its_user_agent() {
        for agent in ["gRPC C-core linux Python", "gRPC Go", "gRPC"] {
            assert_eq!(Client::of(&node(agent, &[(CAPTURE, "AllowAny")])), Client::Grpc, "{agent}");
        }
        for agent in ["tulle", "", "Envoy", "envoy-mobile", "grpc-go"] {
            assert_eq!(Client::of(&node(agent, &[(ADDRESS, "10.0.0.1")])), Client::Sidecar, "{agent}");
        }
        assert_eq!(Client::of(&Node::default()), Client::Sidecar);
    }

    #[test]
    fn an_envoy_without_metadata_binds_for_nobody_and_captures_nothing() {
        let nothing = Envoy { certificates: DEFAULT_CERTIFICATES.into(), address: None, capture: None };
        let bare = Node { user_agent_name: "envoy".into(), ..Default::default() };
        assert_eq!(Client::of(&bare), Client::Envoy(nothing.clone()));
        assert_eq!(envoy(&[("OTHER", "10.0.0.1")]), nothing);
    }

    #[test]
    fn an_envoy_says_where_it_is() {
        let said = envoy(&[(CERTIFICATES, "/run/certs"), (ADDRESS, "fd00::7"), (CAPTURE, "AllowAny")]);
        assert_eq!(said.certificates, "/run/certs");
        assert_eq!(said.address, "fd00::7".parse().ok());
        assert_eq!(said.capture, Some(OutboundPolicy::AllowAny));
    }

    #[test]
    fn what_is_not_understood_opens_nothing() {
        for address in ["", "10.0.0.1:80", "localhost", "10.0.0.0/8"] {
            assert_eq!(envoy(&[(ADDRESS, address)]).address, None, "{address:?}");
        }
        for policy in ["", "allowany", "ALLOW_ANY", "AllowAny ", "true", "RegistryOnly"] {
            let said = envoy(&[(CAPTURE, policy)]).capture;
            assert_eq!(said, Some(OutboundPolicy::RegistryOnly), "{policy:?}");
        }
        let long = "/".repeat(MAX_PATH + 1);
        assert_eq!(envoy(&[(CERTIFICATES, &long)]).certificates, DEFAULT_CERTIFICATES);
        assert_eq!(envoy(&[(CERTIFICATES, &long[1..])]).certificates, long[1..]);
        // A value of another type than text says nothing.
        let yes = Value { kind: Some(ValueKind::BoolValue(true)) };
        let fields = [(CAPTURE.to_owned(), yes)].into();
        let odd =
            Node { user_agent_name: "envoy".into(), metadata: Some(Struct { fields }), ..Default::default() };
        let Client::Envoy(odd) = Client::of(&odd) else { panic!("it is Envoy") };
        assert_eq!(odd.capture, None);
    }

    #[test]
    fn a_policy_is_written_as_it_is_read() {
        for policy in [OutboundPolicy::AllowAny, OutboundPolicy::RegistryOnly] {
            assert_eq!(OutboundPolicy::of(policy.as_str()), policy);
        }
    }
}
