//! `tulle bootstrap`: the file with which Envoy or a gRPC program finds the control plane.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::xds::client::{ADDRESS, CAPTURE, CERTIFICATES, OutboundPolicy};
use tulle_sidecar::config::ControlAddress;

use crate::output::{Failure, write};

/// For whom the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// Envoy: `envoy -c FILE`.
    Envoy,
    /// Any program with gRPC: `GRPC_XDS_BOOTSTRAP=FILE`, and `xds:///cart.shop.svc.cluster.local:80` as its target.
    Grpc,
}

/// Who uses the file, and where its certificates are.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// For whom it is.
    #[arg(value_enum)]
    program: Program,
    /// The folder that `tulle certs --watch` keeps.
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
    /// The control plane's host and port.
    #[arg(long, env = "TULLE_CONTROL_PLANE", value_name = "HOST:PORT")]
    control_plane: ControlAddress,
    /// The root of trust of the workload's identity.
    #[arg(long, env = "TULLE_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// The workload's own name, for lists and logs.
    #[arg(long, env = "TULLE_NAME", default_value = "workload")]
    name: String,
    /// Envoy: the address of the workload that it takes connections for; without it, it takes none.
    #[arg(long, env = "TULLE_ADDRESS", value_name = "IP")]
    address: Option<IpAddr>,
    /// Envoy: it stands behind redirection (`tulle-sidecar init`), in a sidecar's place and as its user.
    #[arg(long, env = "TULLE_CAPTURE")]
    capture: bool,
    /// Envoy: with --capture, what becomes of connections to where the mesh knows nothing.
    #[arg(
        long,
        env = "TULLE_OUTBOUND_POLICY",
        value_name = "POLICY",
        default_value = OutboundPolicy::AllowAny.as_str(),
        value_parser = [OutboundPolicy::AllowAny.as_str(), OutboundPolicy::RegistryOnly.as_str()],
    )]
    outbound_policy: String,
    /// Envoy: the port of its admin interface, on loopback.
    #[arg(long, value_name = "PORT", default_value_t = 15000)]
    admin: u16,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle bootstrap grpc --certs certs/ --control-plane 127.0.0.1:15012 > grpc.json
  tulle bootstrap envoy --certs certs/ --control-plane 127.0.0.1:15012 > envoy.json
  tulle bootstrap envoy --certs certs/ --control-plane 127.0.0.1:15012 --address 10.0.0.7 > envoy.json
  tulle bootstrap envoy --certs certs/ --control-plane 10.0.0.1:15012 --address 10.0.0.7 --capture > envoy.json

The files of DIR must be there before the program starts: `tulle certs DIR` writes them once.";

/// Prints the file.
///
/// # Errors
/// When the folder is not there.
pub fn run(args: &BootstrapArgs) -> Result<(), Failure> {
    let absolute = std::fs::canonicalize(&args.certs);
    let folder = absolute.map_err(|error| Failure::new(format!("{}: {error}", args.certs.display())))?;
    let bootstrap = match args.program {
        Program::Envoy => envoy(args, &folder)?,
        Program::Grpc => grpc(args, &folder),
    };
    write(&format!("{bootstrap:#}\n"))
}

fn grpc(args: &BootstrapArgs, folder: &Path) -> Value {
    let files = json!({
        "certificate_file": folder.join("tls.crt"),
        "private_key_file": folder.join("tls.key"),
        "ca_certificate_file": folder.join("ca.crt"),
        "refresh_interval": "10s",
    });
    json!({
        "xds_servers": [{
            "server_uri": args.control_plane.to_string(),
            "channel_creds": [{ "type": "tls", "config": files }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": args.name },
        "certificate_providers": { "default": { "plugin_name": "file_watcher", "config": files } },
        "server_listener_resource_name_template": "tulle/inbound/%s",
    })
}

fn envoy(args: &BootstrapArgs, folder: &Path) -> Result<Value, Failure> {
    let secret = |name: &str| {
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": folder.join(format!("{name}.sds.json")),
                    "watched_directory": { "path": folder },
                },
            },
        })
    };
    let control_plane = SpiffeId::workload(&args.trust_domain, "tulle-system", "tulle-control-plane");
    let control_plane = control_plane.map_err(Failure::new)?;
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret("default")],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        { "san_type": "URI", "matcher": { "exact": control_plane.as_str() } },
                    ],
                },
                "validation_context_sds_secret_config": secret("ROOTCA"),
            },
        },
    });
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": { "connection_keepalive": { "interval": "10s", "timeout": "5s" } },
        },
    });
    let socket = json!({ "address": args.control_plane.host(), "port_value": args.control_plane.port() });
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let mut metadata = json!({ CERTIFICATES: folder });
    if let Some(address) = args.address {
        metadata[ADDRESS] = json!(address);
    }
    if args.capture {
        metadata[CAPTURE] = json!(args.outbound_policy);
    }
    Ok(json!({
        "node": { "id": args.name, "cluster": args.name, "metadata": metadata },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": args.admin } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "tulle-control-plane" } }],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [{
                "name": "tulle-control-plane",
                "type": "STRICT_DNS",
                "connect_timeout": "5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
                },
                "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
                "load_assignment": {
                    "cluster_name": "tulle-control-plane",
                    "endpoints": [{
                        "lb_endpoints": [{ "endpoint": { "address": { "socket_address": socket } } }],
                    }],
                },
            }],
        },
    }))
}
