//! Resources in the JSON form of their protobufs, with the name that they have on the wire.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

/// The name of the field that [`named`] adds.
const NAME: &str = "name@wire";

/// A message of Envoy's API as an `Any`.
pub fn typed(kind: &str, fields: Value) -> Value {
    let mut message = json!({ "@type": format!("type.googleapis.com/{kind}") });
    merge(&mut message, fields);
    message
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

/// A connection manager as a mesh sets it up, with the routes of a name; `more` is put over it.
pub fn manager(routes: &str, more: Value) -> Value {
    let mut fields = json!({
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
    });
    merge(&mut fields, more);
    typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", fields)
}

/// A cluster with endpoints of its name; `more` is put over it.
pub fn cluster(name: &str, more: Value) -> Value {
    let mut fields = json!({
        "name": name,
        "type": "EDS",
        "eds_cluster_config": { "eds_config": ads() },
        "connect_timeout": "5s",
    });
    merge(&mut fields, more);
    named(name, typed("envoy.config.cluster.v3.Cluster", fields))
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
fn merge(message: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (message, more) {
        let more: Map<String, Value> = more;
        fields.extend(more);
    }
}
