//! Certificates in files, for workloads without a sidecar.

use std::path::Path;

use tokio::process::Command;

use crate::{NAMESPACE, TRUST_DOMAIN, TestMesh, binary};

/// `tulle certs` for a service account, with a join token of its own.
pub fn certs(mesh: &TestMesh, service_account: &str, folder: &Path) -> Command {
    let token = mesh.mesh.token(NAMESPACE, service_account).unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(binary("tulle"));
    command.arg("certs").arg(folder).args(["--namespace", NAMESPACE, "--service-account", service_account]);
    command.args(["--trust-domain", TRUST_DOMAIN, "--control-plane", &mesh.mesh.xds().to_string()]);
    command.arg("--root-file").arg(mesh.mesh.state.join("root.pem")).arg("--token-file").arg(token);
    command
}
