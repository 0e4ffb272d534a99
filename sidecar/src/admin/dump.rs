//! What the sidecar believes: the snapshot in force, with how its endpoints do, and the certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;
use serde_json::Value;

use super::Admin;
use super::types::{Certificate, Certificates, ClusterDump, Dump, EndpointDump, ListenerDump};
use crate::balance::{Cluster, Endpoint};
use crate::snapshot::{ChainProtocol, Listener};
use crate::tls::{CertificateFacts, stamp};

/// `GET /config`
pub(super) async fn config(State(admin): State<Arc<Admin>>) -> Json<Dump> {
    let status = admin.handle.status().await;
    let names = status.iter().flat_map(|status| &status.names).map(|name| json(&**name)).collect();
    let sync = status.map_or(Value::Null, |status| json(&status));
    let snapshot = admin.in_force.borrow().snapshot.clone();
    let now = Instant::now();
    let mut outbound: BTreeMap<&str, ListenerDump> = BTreeMap::new();
    for (name, found) in &snapshot.outbound {
        let dump = outbound.entry(&found.name).or_insert_with(|| listener(found, now));
        if *name != found.name {
            dump.aliases.push(name.to_string());
        }
    }
    let mut outbound: Vec<_> = outbound.into_values().collect();
    for dump in &mut outbound {
        dump.aliases.sort_unstable();
    }
    let mut inbound: Vec<_> = snapshot.inbound_listeners().map(|found| listener(found, now)).collect();
    inbound.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut absent: Vec<_> = snapshot.absent.iter().map(ToString::to_string).collect();
    absent.sort_unstable();
    let mut clusters: Vec<_> = snapshot.clusters.values().map(|found| cluster(found, now)).collect();
    clusters.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Json(Dump { generation: snapshot.generation, sync, outbound, inbound, absent, clusters, names })
}

/// `GET /certs`
pub(super) async fn certificates(State(admin): State<Arc<Admin>>) -> Json<Certificates> {
    let material = admin.handle.material.borrow().clone();
    let now = SystemTime::now();
    Json(material.map_or_else(Certificates::default, |material| Certificates {
        leaf: Some(certificate(&material.leaf, now)),
        roots: material.roots.iter().map(|root| certificate(root, now)).collect(),
    }))
}

/// A cluster and how its endpoints do.
pub(super) fn cluster(cluster: &Cluster, now: Instant) -> ClusterDump {
    let endpoints = cluster.endpoints.iter().map(|found| endpoint(found, now));
    ClusterDump {
        name: cluster.name.to_string(),
        cluster: json(&*cluster.model),
        endpoints: endpoints.collect(),
    }
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> EndpointDump {
    let tls = endpoint.tls.as_ref();
    EndpointDump {
        address: endpoint.address.to_string(),
        workload: endpoint.model.workload.clone(),
        identity: tls.and_then(|tls| tls.identity.as_ref()).map(ToString::to_string),
        tls: tls.is_some(),
        health: json(&endpoint.model.health),
        in_flight: endpoint.stats.in_flight(),
        latency_ms: endpoint.stats.latency(now).as_secs_f64() * 1000.0,
        ejected: endpoint.stats.is_ejected(now),
    }
}

fn listener(listener: &Listener, now: Instant) -> ListenerDump {
    let mut routes = BTreeMap::new();
    for (chain, model) in listener.chains.iter().zip(&listener.model.chains) {
        if let ChainProtocol::Http(http) = &chain.protocol {
            let all = http.table.routes().map(|(id, route)| {
                let mut route = json(route);
                if let Some(fields) = route.as_object_mut() {
                    fields.insert("virtualHost".into(), http.table.virtual_host(id).name.clone().into());
                }
                route
            });
            routes.insert(model.name.clone(), all.collect());
        }
    }
    ListenerDump {
        name: listener.name.to_string(),
        aliases: Vec::new(),
        idle_seconds: listener.last_use.age(now).as_secs(),
        listener: json(&*listener.model),
        routes,
    }
}

fn certificate(facts: &CertificateFacts, now: SystemTime) -> Certificate {
    let expires_in = match facts.not_after.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(over) => i64::try_from(over.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    Certificate {
        subject: facts.subject.clone(),
        uris: facts.uris.clone(),
        serial: facts.serial.clone(),
        fingerprint: facts.fingerprint.clone(),
        not_before: stamp(facts.not_before),
        not_after: stamp(facts.not_after),
        expires_in,
    }
}

/// As JSON; what can't be JSON (which no type here is) says why in its place.
pub(super) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(error.to_string()))
}
