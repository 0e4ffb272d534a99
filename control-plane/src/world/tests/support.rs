//! Worlds from YAML.

use tulle_mesh::model::{Listener, PerMillion, Protocol, Route, RouteSource};
use tulle_mesh::route::RouteTable;
use tulle_mesh::xds::Resource;

use crate::source::{Loaded, ManifestsSource};
use crate::world::{MeshSettings, World};

pub(super) fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: "mesh.test".parse().expect("valid"),
        cluster_domain: "cluster.local".into(),
        namespace: "tulle-system".into(),
        sampling: PerMillion::percent(1),
        virtual_ranges: Vec::new(),
    }
}

/// Reads manifests from a folder with one file, `x.yaml`, whose lines are those of `yaml`.
pub(super) fn load(yaml: &str) -> Loaded {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("x.yaml"), yaml).expect("written");
    let (_, mut loaded) = ManifestsSource::load(dir.path()).expect("readable");
    assert_eq!(loaded.problems, [], "the manifests of a test are well formed");
    loaded.problems.clear();
    loaded
}

/// The world of some manifests. Whatever it is made of arrives at a sidecar as it was meant, and compiles there.
pub(super) fn world(yaml: &str) -> World {
    let world = World::build(&load(yaml).objects, &settings());
    assert_survives_the_wire(&world);
    world
}

pub(super) fn assert_survives_the_wire(world: &World) {
    let listeners = world.listeners().values().map(|listener| Resource::Listener((**listener).clone()));
    let routes = world.routes().values().map(|routes| Resource::Route((**routes).clone()));
    let clusters = world.clusters().values().map(|cluster| Resource::Cluster((**cluster).clone()));
    let endpoints = world.assignments().values().map(|endpoints| Resource::Endpoint((**endpoints).clone()));
    let names = world.dns().values().map(|name| Resource::Dns((**name).clone()));
    for resource in listeners.chain(routes).chain(clusters).chain(endpoints).chain(names) {
        let decoded = Resource::decode(resource.type_url(), &resource.encode_bytes());
        assert_eq!(decoded.as_ref(), Ok(&resource), "{} changed on the wire", resource.name());
    }
    for routes in world.routes().values() {
        RouteTable::compile(routes).expect("routes compile");
    }
}

/// The problems, each without the folder in front of the file's name.
pub(super) fn problems(world: &World) -> Vec<String> {
    let short = |text: String| text.find("x.yaml").map(|at| text[at..].to_owned()).unwrap_or(text);
    world.problems().iter().map(|problem| short(problem.to_string())).collect()
}

/// The routes of a port, as a client in `namespace` has them.
pub(super) fn routes(world: &World, name: &str, namespace: &str) -> Vec<Route> {
    let listener = listener(world, name, namespace);
    let Protocol::Http(http) = &listener.chains[0].protocol else { panic!("{name} does not carry HTTP") };
    let RouteSource::Named(routes) = &http.routes else { panic!("{name} has its routes inline") };
    world.route(routes).expect("made with its listener").virtual_hosts[0].routes.clone()
}

pub(super) fn listener<'a>(world: &'a World, name: &str, namespace: &str) -> &'a Listener {
    let key = world.resolve(name, namespace).unwrap_or_else(|| panic!("{name} is unknown"));
    world.listener(&key).expect("resolved")
}

/// A Service with one port, selecting `app: <name>`.
pub(super) fn service(namespace: &str, name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: {name}}}, {rest}}}\n"
    )
}

/// A Workload with label `app: <app>` that runs as that service account too.
pub(super) fn workload(
    namespace: &str,
    name: &str,
    app: &str,
    address: &str,
    port: u16,
    mesh_port: u16,
) -> String {
    format!(
        "---\napiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
         spec: {{address: {address}, serviceAccount: {app}, ports: [{{name: http, port: {port}, meshPort: {mesh_port}}}]}}\n"
    )
}
