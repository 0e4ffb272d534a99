//! The answer from objects: manifests, or those of a cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tulle_control_plane::source::{Key, Kind, Objects};
use tulle_control_plane::world::World;
use tulle_mesh::address::{inbound_listener, parse_inbound_listener};
use tulle_mesh::explain::{Action, Explanation, Question, Resources, explain};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    Cluster, Discovery, Endpoint, Listener, Origin, RouteConfiguration, TrafficDirection,
};
use tulle_mesh::route::RequestView;

use super::{Answer, REFUSED, RequestArgs};
use crate::commands::manifests::Manifests;
use crate::output::Failure;

/// Follows a request through the mesh that objects make.
pub(super) fn ask(
    manifests: &Manifests,
    (namespace, account): &(String, String),
    request: &RequestArgs,
) -> Result<Answer, Failure> {
    let client = SpiffeId::workload(&manifests.trust_domain, namespace, account).map_err(Failure::usage)?;
    let dialled = request.dialled();
    let world = &manifests.world;
    let listener = world.resolve(&dialled, namespace).and_then(|key| world.listener(&key));
    let listener = listener
        .filter(|listener| listener.direction == TrafficDirection::Outbound)
        .ok_or_else(|| Failure::with(REFUSED, not_known(&dialled, world)))?;

    let own = world.inbound_of(&client).find_map(|name| parse_inbound_listener(name));
    let source_ip = own.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
    let (host, headers) = (request.host()?, request.header_map());
    let view = RequestView::new(&request.method, &host, &request.path, &headers);
    let question = Question { client: Some(&client), source_ip, request: &view };
    let explanation = explain(&question, listener, &Whole(world)).map_err(Failure::new)?;

    let mut notes = Vec::new();
    if !world.workloads().iter().any(|workload| workload.identity.as_ref() == Some(&client)) {
        notes.push(format!("no workload that is known here is {client}"));
    }
    let problems = manifests.problems().len();
    if problems > 0 {
        let plural = if problems == 1 { "" } else { "s" };
        notes.push(format!("`tulle analyze` finds {problems} problem{plural} in these objects"));
    }
    let places = places(&explanation, &manifests.objects);
    Ok(Answer { dialled, explanation, places, notes })
}

/// The whole mesh.
struct Whole<'a>(&'a World);

impl Resources for Whole<'_> {
    fn routes(&self, name: &str) -> Option<&RouteConfiguration> {
        self.0.route(name).map(|routes| &**routes)
    }

    fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.0.cluster(name).map(|cluster| &**cluster)
    }

    fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Vec<&'a Endpoint> {
        match &cluster.discovery {
            Discovery::Eds(name) => self.0.assignment(name).map(|found| found.endpoints().collect()),
            Discovery::Static(assignment) => Some(assignment.endpoints().collect()),
            // Nothing is looked up here.
            Discovery::StrictDns(..) | Discovery::LogicalDns(..) | Discovery::OriginalDestination => None,
        }
        .unwrap_or_default()
    }

    fn inbound(&self, address: SocketAddr) -> Option<&Listener> {
        self.0.listener(&inbound_listener(address)).map(|listener| &**listener)
    }
}

/// Names what there is of the same name, since a wrong namespace or port is the usual reason.
fn not_known(dialled: &str, world: &World) -> String {
    let first = dialled.split(['.', ':']).next().unwrap_or(dialled);
    let outbound =
        world.listeners().values().filter(|listener| listener.direction == TrafficDirection::Outbound);
    let mut similar: Vec<&str> = outbound
        .map(|listener| listener.name.as_str())
        .filter(|name| name.split('.').next() == Some(first))
        .collect();
    similar.dedup();
    let hint = match similar[..] {
        [] => "no Service has this name".to_owned(),
        _ => format!("there is {}", similar.join(", ")),
    };
    format!(
        "{dialled} is not in the mesh: {hint}. A sidecar connects to it as it is, or refuses it where its \
         outbound.policy is RegistryOnly"
    )
}

/// Where the routes and the policies of an explanation are written.
fn places(explanation: &Explanation, objects: &Objects) -> BTreeMap<String, String> {
    let mut places = BTreeMap::new();
    if let Some(record) = &explanation.route {
        for route in record.matched.iter().chain(record.missed.iter().map(|miss| &miss.route)) {
            let place = route.origin.as_ref().and_then(|origin| origin_place(origin, objects));
            places.extend(place.map(|place| (route.name.clone(), place)));
        }
    }
    let Some(Action::Forward(forward)) = &explanation.action else { return places };
    let endpoints = forward.backends.iter().flat_map(|backend| &backend.endpoints);
    let inbounds = endpoints.filter_map(|endpoint| endpoint.inbound.as_ref());
    for record in inbounds.flat_map(|inbound| [&inbound.connection, &inbound.request]).flatten() {
        for policy in &record.policies {
            let place = policy_place(&policy.policy, objects);
            places.extend(place.map(|place| (policy.policy.clone(), place)));
        }
    }
    places
}

fn origin_place(origin: &Origin, objects: &Objects) -> Option<String> {
    let field = format!("spec.rules[{}].matches[{}]", origin.rule, origin.matched);
    let key = Key::new(&origin.namespace, &origin.name);
    match origin.kind.as_str() {
        "HTTPRoute" => place(&objects.http_routes, &key, &field),
        "GRPCRoute" => place(&objects.grpc_routes, &key, &field),
        "Service" => place(&objects.services, &key, ""),
        _ => None,
    }
}

/// A policy's name is `<namespace>/<name>#<rule>`.
fn policy_place(name: &str, objects: &Objects) -> Option<String> {
    let (object, rule) = name.rsplit_once('#')?;
    let (namespace, name) = object.split_once('/')?;
    place(&objects.authorization_policies, &Key::new(namespace, name), &format!("spec.rules[{rule}]"))
}

fn place<T: Kind>(table: &tulle_control_plane::source::Table<T>, key: &Key, field: &str) -> Option<String> {
    let place = table.get(key)?.place.as_ref()?;
    Some(format!("{}:{}", place.file.display(), place.line_of(field)))
}
