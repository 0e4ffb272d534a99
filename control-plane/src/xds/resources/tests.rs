//! What each kind of client is shown of the same manifests, decoded again as Envoy's own messages.

mod captured;
mod peers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use prost::Message;
use tokio::sync::watch;
use tulle_mesh::model::PerMillion;
use tulle_mesh::xds;
use tulle_mesh::xds::client::{Envoy, OutboundPolicy};

use super::{Resources, Update};
use crate::ca::Bundle;
use crate::caller::{Caller, Proof};
use crate::source::ManifestsSource;
use crate::world::MeshSettings;
use crate::xds::{Catalog, Client, Kind};

/// A catalog, and who looks into it.
struct Shown {
    resources: Resources,
    _bundle: watch::Sender<Bundle>,
}

impl Shown {
    fn new(yaml: &str) -> Self {
        let settings = MeshSettings {
            trust_domain: "mesh.test".parse().expect("valid"),
            cluster_domain: "cluster.local".into(),
            namespace: "tulle-system".into(),
            sampling: PerMillion::percent(1),
            virtual_ranges: Vec::new(),
        };
        let (sender, bundle) = watch::channel(Bundle { roots: Arc::new([]) });
        let shown = Self { resources: Resources::new(settings, bundle, None), _bundle: sender };
        shown.update(yaml);
        shown
    }

    /// Takes other manifests; the names that are told to have changed.
    fn update(&self, yaml: &str) -> BTreeSet<(Kind, String)> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("x.yaml"), yaml).expect("written");
        let (_, loaded) = ManifestsSource::load(folder.path()).expect("readable");
        let Update { changed, problems, .. } = self.resources.update(&loaded);
        assert_eq!(problems, [], "the manifests of a test are well formed");
        let names = Kind::ALL.into_iter().map(|kind| (kind, changed.names(kind).iter()));
        names.flat_map(|(kind, names)| names.map(move |name| (kind, name.to_string()))).collect()
    }

    fn names(&self, kind: Kind, client: &Client) -> Vec<String> {
        self.resources.names(kind, client).iter().map(ToString::to_string).collect()
    }

    fn find<M: Message + Default>(&self, kind: Kind, name: &str, client: &Client) -> Option<M> {
        let found = self.resources.find(kind, name, client)?;
        assert_eq!((&*found.name, found.any.type_url.as_str()), (name, kind.type_url()));
        Some(M::decode(&*found.any.value).expect("its own type"))
    }

    fn listener(&self, name: &str, client: &Client) -> Option<Listener> {
        self.find(Kind::Listener, name, client)
    }

    fn cluster(&self, name: &str, client: &Client) -> Option<Cluster> {
        self.find(Kind::Cluster, name, client)
    }

    fn endpoints(&self, name: &str, client: &Client) -> Option<ClusterLoadAssignment> {
        self.find(Kind::Endpoint, name, client)
    }
}

/// A client that is a service account of the namespace `shop`.
fn client(account: &str, kind: xds::Client) -> Client {
    let identity = id(account).parse().expect("valid");
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    Client { caller: Caller { identity, proof: Proof::Token { expires } }, kind }
}

fn grpc(account: &str) -> Client {
    client(account, xds::Client::Grpc)
}

fn envoy(account: &str, address: Option<&str>, capture: Option<OutboundPolicy>) -> Client {
    let address = address.map(|address| address.parse().expect("an address"));
    client(account, xds::Client::Envoy(Envoy { certificates: "/certs".into(), address, capture }))
}

fn id(account: &str) -> String {
    format!("spiffe://mesh.test/ns/shop/sa/{account}")
}

/// A Service at addresses, and its only port, which carries HTTP unless its name says otherwise.
fn service(name: &str, addresses: &str, port: &str) -> String {
    let first = addresses.split(',').next().expect("one is always there");
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: '{first}', clusterIPs: [{addresses}], selector: {{app: {name}}}, ports: [{port}]}}\n"
    )
}

/// A Workload with label `app: <name>`, which runs as `account`.
fn workload(name: &str, account: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{serviceAccount: {account}, {rest}}}\n"
    )
}

/// The identities that may answer for a cluster: the typed names, which must be the untyped ones where there are any.
fn pinned(cluster: &Cluster) -> Vec<String> {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    let of_matches = cluster.transport_socket_matches.first().and_then(|mesh| mesh.transport_socket.as_ref());
    let Some(socket) = cluster.transport_socket.as_ref().or(of_matches) else { return Vec::new() };
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else { panic!("{socket:?}") };
    let context = UpstreamTlsContext::decode(&*config.value).expect("an upstream's context");
    let common = context.common_tls_context.expect("it is always written");
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type
    else {
        panic!("{common:?}");
    };
    let names =
        combined.default_validation_context.expect("it is always written").match_typed_subject_alt_names;
    let exact = names.into_iter().map(|name| match name.matcher.and_then(|matcher| matcher.match_pattern) {
        Some(MatchPattern::Exact(id)) => id,
        other => panic!("{other:?}"),
    });
    exact.collect()
}
