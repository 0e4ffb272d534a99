//! `tulle certs`: a workload's certificate in files, for Envoy and gRPC.

use std::path::PathBuf;

use clap::Args;
use tulle_mesh::identity::TrustDomain;
use tulle_sidecar::certs::Certificates;
use tulle_sidecar::config::{ControlAddress, ControlPlane, Workload};

use crate::output::{Failure, write};

/// Whose certificate goes where.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// The folder; made if it is missing.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Stay, and renew the certificate and the trust bundle in time.
    #[arg(long)]
    watch: bool,
    /// The workload's namespace.
    #[arg(long, short, env = "TULLE_NAMESPACE")]
    namespace: String,
    /// The service account that the workload runs as.
    #[arg(long, env = "TULLE_SERVICE_ACCOUNT")]
    service_account: String,
    /// The root of trust of the workload's identity.
    #[arg(long, env = "TULLE_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// The control plane's host and port.
    #[arg(long, env = "TULLE_CONTROL_PLANE", value_name = "HOST:PORT")]
    control_plane: ControlAddress,
    /// The name in the control plane's certificate [default: its host].
    #[arg(long, env = "TULLE_CONTROL_PLANE_NAME", value_name = "HOST")]
    control_plane_name: Option<String>,
    /// The PEM file with the root that signs the control plane's certificate.
    #[arg(long, env = "TULLE_ROOT_FILE", value_name = "FILE")]
    root_file: PathBuf,
    /// The file with the token by which the workload proves itself; needless where DIR holds a valid certificate of its own.
    #[arg(long, env = "TULLE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle certs certs/ -n shop --service-account cart --control-plane 10.0.0.1:15012 \\
    --root-file root.pem --token-file cart.token
  tulle certs --watch certs/ -n shop --service-account cart ...

DIR then holds tls.key (which only this user can read), tls.crt (the chain, leaf first), ca.crt (all roots of the mesh), and
default.sds.json and ROOTCA.sds.json, which tell Envoy of them. All are replaced at once, as in a Secret that Kubernetes
mounts: Envoy's `watched_directory` and gRPC's `file_watcher` see it.";

/// Writes the certificate, once or again and again.
///
/// # Errors
/// When there is none, or the folder can't be written.
pub async fn run(args: CertsArgs) -> Result<(), Failure> {
    let workload = Workload {
        name: args.service_account.clone(),
        namespace: args.namespace,
        service_account: args.service_account,
    };
    let control_plane = ControlPlane {
        server_name: args.control_plane_name.unwrap_or_else(|| args.control_plane.host().to_owned()),
        address: args.control_plane,
        root_file: args.root_file,
        token_file: args.token_file,
    };
    let certificates =
        Certificates::new(workload, &args.trust_domain, control_plane).map_err(Failure::new)?;
    if args.watch {
        Box::pin(certificates.keep(&args.folder)).await.map_err(Failure::new)
    } else {
        let written = Box::pin(certificates.write_once(&args.folder)).await.map_err(Failure::new)?;
        write(&format!("{written}\n"))
    }
}
