//! A port of a pod, on this machine: the HTTP API of a control plane, the admin interface of a sidecar, which listens on the
//! pod's loopback alone.
//!
//! In: a pod and its port. Out: an address, for as long as the [`Forward`] lives. It is `kubectl port-forward` that carries
//! it, with the user's own rights: who may not reach into pods is refused by the API server.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;
use tulle_control_plane::inject::COMPONENT_LABEL;

use super::cluster::ClusterArgs;
use crate::output::Failure;

/// How long it may take until a port is there.
const LIMIT: Duration = Duration::from_secs(20);

/// The port of a control plane's HTTP API.
const API_PORT: u16 = 15014;

/// A port that is forwarded. Ends when it is dropped.
pub(super) struct Forward {
    /// Where it is on this machine, as `http://<address>`.
    pub(super) url: String,
    _kubectl: Child,
    /// It tells of each connection, and ends when nobody could read that.
    _told: (BufReader<ChildStdout>, ChildStderr),
}

impl Forward {
    /// Forwards a port of a pod.
    ///
    /// # Errors
    /// When there is no kubectl, or it says why it can't.
    pub(super) async fn open(
        cluster: &ClusterArgs,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Self, Failure> {
        let mut command = Command::new("kubectl");
        if let Some(kubeconfig) = &cluster.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &cluster.context {
            command.args(["--context", context]);
        }
        command.args(["-n", namespace, "port-forward", "--address", "127.0.0.1"]);
        command.args([&format!("pod/{pod}"), &format!(":{port}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let failed = |reason: &str| {
            Failure::new(format!("can't reach port {port} of the pod {namespace}/{pod}: {}", reason.trim()))
        };
        let mut kubectl =
            command.spawn().map_err(|error| failed(&format!("kubectl can't be run: {error}; install it")))?;
        let (Some(out), Some(mut err)) = (kubectl.stdout.take(), kubectl.stderr.take()) else {
            return Err(failed("kubectl has no output"));
        };
        let mut out = BufReader::new(out);
        let mut first = String::new();
        let told = timeout(LIMIT, out.read_line(&mut first)).await;
        if told.is_err() {
            return Err(failed("kubectl does not say where it is"));
        }
        // "Forwarding from 127.0.0.1:40321 -> 15014"
        let address = first.strip_prefix("Forwarding from ").and_then(|rest| rest.split(" -> ").next());
        let Some(address) = address else {
            let mut reason = String::new();
            // It ends when it has nothing to forward.
            let _ = timeout(LIMIT, err.read_to_string(&mut reason)).await;
            return Err(failed(&format!("{first}{reason}")));
        };
        Ok(Self { url: format!("http://{address}"), _kubectl: kubectl, _told: (out, err) })
    }
}

/// The HTTP APIs of all replicas of a cluster's control plane: each knows the sidecars that are connected to it.
///
/// # Errors
/// When no replica runs, or one can't be reached.
pub(super) async fn control_planes(args: &ClusterArgs) -> Result<Vec<Forward>, Failure> {
    let cluster = args.connect().await?;
    let pods = Api::<Pod>::namespaced(cluster.client, &cluster.namespace);
    let replicas = ListParams::default().labels(&format!("{COMPONENT_LABEL}=control-plane"));
    let pods = pods.list(&replicas).await.map_err(|error| {
        Failure::new(format!("can't list the control plane's pods in {}: {error}", cluster.namespace))
    })?;
    let running = pods.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    let mut forwards = Vec::new();
    for pod in running {
        forwards.push(Forward::open(args, &cluster.namespace, &pod.name_any(), API_PORT).await?);
    }
    if forwards.is_empty() {
        let namespace = &cluster.namespace;
        return Err(Failure::new(format!(
            "no control plane runs in {namespace}; `tulle check` says what is wrong"
        )));
    }
    Ok(forwards)
}
