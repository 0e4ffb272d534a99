//! Envoy, running under a control plane.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio::process::{Child, Command};
use tulle_cli::local::fetch;

use crate::{LIMIT, python_program, wait_for};

/// Starts it under the control plane at `ads`, and waits until it is ready: the process, and where its administration is.
pub(super) async fn start(folder: &Path, ads: SocketAddr) -> (Child, SocketAddr) {
    let address_file = folder.join("envoy.admin");
    let bootstrap = json!({
        "node": { "id": "oracle", "cluster": "oracle" },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "ads" } }],
            },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": {
            "clusters": [{
                "name": "ads",
                "type": "STATIC",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
                "load_assignment": { "cluster_name": "ads", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                    "address": { "socket_address": {
                        "address": ads.ip().to_string(),
                        "port_value": ads.port(),
                    } },
                } }] }] },
            }],
        },
    });
    let path = folder.join("envoy.json");
    std::fs::write(&path, bootstrap.to_string()).expect("the folder can be written");
    let out = std::fs::File::create(folder.join("envoy.out")).expect("the folder can be written");
    let log = std::fs::File::create(folder.join("envoy.log")).expect("the folder can be written");
    let mut command = Command::new(python_program().with_file_name("envoy"));
    command.arg("-c").arg(&path).arg("--admin-address-path").arg(&address_file);
    command.args(["--file-flush-interval-msec", "50"]);
    command.args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]);
    command.stdin(Stdio::null()).stdout(out).stderr(log);
    let child = command.kill_on_drop(true).spawn();
    let child = child.unwrap_or_else(|error| panic!("envoy: {error}; run tests/setup"));
    let started = || async {
        let address = std::fs::read_to_string(&address_file).map_err(|error| error.to_string())?;
        address.trim().parse().map_err(|_| format!("{address:?} is no address"))
    };
    let admin = wait_for(LIMIT, started).await.unwrap_or_else(|error| {
        let log = std::fs::read_to_string(folder.join("envoy.log")).unwrap_or_default();
        panic!("envoy does not start: {error}\n{log}")
    });
    let live = || async {
        let (status, text) = fetch(&format!("http://{admin}/ready")).await?;
        if status == 200 { Ok(()) } else { Err(text) }
    };
    wait_for(LIMIT, live).await.unwrap_or_else(|error| panic!("envoy is not ready: {error}"));
    (child, admin)
}
