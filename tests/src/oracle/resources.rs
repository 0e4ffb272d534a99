//! Resources in the JSON form of their protobufs, with the name that they have on the wire.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

/// The name of the field that [`named`] adds.
const NAME: &str = "name@wire";

/// A message of Envoy's API as an `Any`.
pub fn typed(kind: &str, fields: Value) -> Value {
    merged(json!({ "@type": format!("type.googleapis.com/{kind}") }), fields)
}

/// A listener of one chain, whose only filter is `manager`.
pub fn listener(name: &str, address: SocketAddr, manager: &Value) -> Value {
    let fields = json!({
        "name": name,
        "traffic_direction": "OUTBOUND",
        "address": socket(address),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }] }],
    });
    named(name, typed("envoy.config.listener.v3.Listener", fields))
}

/// A listener for peers, with filter chains as [`chain`] makes them; `more` is put over it.
pub(super) fn inbound(name: &str, address: SocketAddr, chains: &[Value], more: Value) -> Value {
    let fields = merged(
        json!({
            "name": name,
            "traffic_direction": "INBOUND",
            "address": socket(address),
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", json!({})),
            }],
            "filter_chains": chains,
        }),
        more,
    );
    named(name, typed("envoy.config.listener.v3.Listener", fields))
}

/// Conditions for one more chain, or for several, by which what `sign` tells is always taken, whatever the chains are: a chain
/// for all destinations is out where there is one for just the right.
pub(super) fn signs(chains: &[Value], sign: &Value) -> Vec<Value> {
    let mut signs = vec![sign.clone()];
    for chain in chains {
        let matches = &chain["filter_chain_match"];
        let ranges = matches["prefix_ranges"].as_array().into_iter().flatten();
        // A port's chains may all be for addresses that are dialled by nobody.
        for range in ranges.map(Some).chain([None]) {
            let mut sign = sign.clone();
            if let Some(range) = range {
                sign["prefix_ranges"] = json!([range]);
            }
            if !matches["destination_port"].is_null() {
                sign["destination_port"] = matches["destination_port"].clone();
            }
            if !signs.contains(&sign) {
                signs.push(sign);
            }
        }
    }
    signs
}

/// A filter chain whose last filter is `manager`; `tls`: whether a client's certificate is required, where it is of TLS.
pub fn chain(name: &str, matches: Value, tls: Option<bool>, manager: &Value) -> Value {
    let secret = |name: &str| json!({ "name": name, "sds_config": ads() });
    let mut chain = json!({
        "name": name,
        "filter_chain_match": matches,
        "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }],
    });
    if let Some(required) = tls {
        let context = json!({
            "common_tls_context": {
                "alpn_protocols": ["http/1.1"],
                "tls_certificate_sds_secret_configs": [secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {},
                    "validation_context_sds_secret_config": secret("ROOTCA"),
                },
            },
            "require_client_certificate": required,
        });
        let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        chain["transport_socket"] =
            json!({ "name": "envoy.transport_sockets.tls", "typed_config": typed(kind, context) });
    }
    chain
}

/// What Envoy proves itself with, and what it trusts, by the names that a mesh has for them.
pub(super) fn secrets(folder: &Path) -> Vec<Value> {
    let file = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).expect("it is written before");
        json!({ "inline_string": text })
    };
    let own = json!({ "certificate_chain": file("client.pem"), "private_key": file("client.key") });
    [
        ("default", "tls_certificate", own),
        ("ROOTCA", "validation_context", json!({ "trusted_ca": file("root.pem") })),
    ]
    .map(|(name, kind, value)| {
        let fields = json!({ "name": name, kind: value });
        named(name, typed("envoy.extensions.transport_sockets.tls.v3.Secret", fields))
    })
    .into()
}

/// A connection manager as a mesh sets it up, with the routes of a name; `more` is put over it.
pub fn manager(routes: &str, more: Value) -> Value {
    let fields = merged(
        json!({
            "stat_prefix": "oracle",
            "rds": { "route_config_name": routes, "config_source": ads() },
            "stream_idle_timeout": "300s",
            // Envoy leaves a connection that it is done with open for 1 s else.
            "delayed_close_timeout": "0.05s",
            "upgrade_configs": [{ "upgrade_type": "websocket" }],
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
            }],
        }),
        more,
    );
    typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", fields)
}

/// The same, with routes of its own, of these virtual hosts.
pub fn manager_of(hosts: &[Value], more: Value) -> Value {
    let mut manager = manager("", more);
    manager.as_object_mut().expect("a message").remove("rds");
    manager["route_config"] = json!({ "name": "own", "virtual_hosts": hosts });
    manager
}

/// A cluster with endpoints of its name; `more` is put over it.
pub fn cluster(name: &str, more: Value) -> Value {
    let fields = merged(
        json!({
            "name": name,
            "type": "EDS",
            "eds_cluster_config": { "eds_config": ads() },
            "connect_timeout": "5s",
        }),
        more,
    );
    named(name, typed("envoy.config.cluster.v3.Cluster", fields))
}

/// What a cluster says besides whose endpoints speak HTTP/2; `options`: what it says of that.
pub fn speaking_http2(options: Value) -> Value {
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let http2 = json!({ "explicit_http_config": { "http2_protocol_options": options } });
    json!({ "typed_extension_protocol_options": { kind: typed(kind, http2) } })
}

/// A cluster's endpoints, all of one weight.
pub fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({ "endpoint": { "address": socket(*address) } })).collect();
    let fields = json!({
        "cluster_name": cluster,
        "endpoints": [{ "locality": {}, "load_balancing_weight": 1, "lb_endpoints": endpoints }],
    });
    named(cluster, typed("envoy.config.endpoint.v3.ClusterLoadAssignment", fields))
}

/// A route configuration.
pub fn route_configuration(name: &str, hosts: &[Value]) -> Value {
    let fields = json!({ "name": name, "virtual_hosts": hosts });
    named(name, typed("envoy.config.route.v3.RouteConfiguration", fields))
}

fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn named(name: &str, mut resource: Value) -> Value {
    resource[NAME] = json!(name);
    resource
}

/// Top-level fields replace.
/// A message with the fields of `more` over its own.
///
/// # Panics
/// When one of the two is none.
pub fn merged(mut message: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut message, more) else {
        panic!("{message} is no message, or what is put over it")
    };
    fields.extend(more);
    message
}
