//! Workload: what runs outside a cluster, or without one.

use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A workload that Kubernetes does not run: a process on a virtual machine, or any process where there is no cluster.
/// Services select it by its labels, as they select pods.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "Workload", namespaced, derive = "PartialEq")]
#[kube(
    doc = "A workload that Kubernetes does not run. Services select it by its labels, as they select pods."
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// The IP address at which peers reach it.
    pub address: IpAddr,
    /// All its addresses, where it has several, as with one of each family; `address` is one of them, whether or not it
    /// stands here. Services lead to `address` alone; a headless one has them all in DNS, and each can be dialled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The service account that it runs as: the last part of its identity,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. `default` where it is not given.
    #[serde(default = "default_account")]
    pub service_account: String,
    /// The ports that it serves.
    #[serde(default)]
    pub ports: Vec<WorkloadPort>,
    /// Ports of its address that are not redirected to its sidecar (`tulle-sidecar init --skip-inbound-ports`): peers reach
    /// them as they are, in plaintext. On all other ports that stand nowhere, peers speak mTLS to it, unless a `meshPort`
    /// above shows that nothing is redirected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1)))]
    pub skip_inbound_ports: Vec<u16>,
    /// It has a sidecar, so that peers speak mTLS to it. Yes where it is not given.
    #[serde(default = "yes")]
    pub meshed: bool,
    /// It may get requests. Yes where it is not given.
    #[serde(default = "yes")]
    pub ready: bool,
    /// Its share of a service's requests; 1 where it is not given.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub weight: u32,
    /// Where it runs, as `region/zone`; empty where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadPort {
    /// Its name; a Service's `targetPort` may give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port on which the application serves; a Service's `targetPort` may give it.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The port on which the sidecar serves in the application's place: peers connect here. The application's own
    /// port where it is not given; another one where many workloads share an address, or where the sidecar and the
    /// application share a network namespace without redirection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub mesh_port: Option<u16>,
}

fn default_account() -> String {
    "default".into()
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}
