//! What becomes of one request: why it takes its route, what is done to it, where it may arrive, and what each
//! workload there says to it.
//!
//! In: a [`Question`], the outbound listener that it meets, and [`Resources`] by name: the whole mesh offline, or what one
//! sidecar holds. Out: an [`Explanation`], made by the same tables and authorizers that decide about live traffic. It
//! can be serialized and read back, so that a sidecar's answer and the offline one print alike. Values of headers that
//! hold credentials never stand in it. Nothing is drawn: a fraction counts as hit, and every backend is followed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::authorize::AuthorizationRecord;
use crate::identity::SpiffeId;
use crate::model::{self, Cluster, Health, Listener, RouteConfiguration};
use crate::route::{RequestView, RouteError, RouteRecord};

mod inbound;
mod outbound;

pub use outbound::explain;

/// A request that could be made.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The client's identity, which its sidecar proves where the connection is mTLS.
    pub client: Option<&'a SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// Its head.
    pub request: &'a RequestView<'a>,
}

/// Where what a listener names is found. A miss is an answer: it is what the sidecar would find, too.
pub trait Resources {
    /// A route configuration.
    fn routes(&self, name: &str) -> Option<&RouteConfiguration>;
    /// A cluster.
    fn cluster(&self, name: &str) -> Option<&Cluster>;
    /// The endpoints of a cluster, as far as they are known here: those found by DNS only where somebody looked them up.
    fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Vec<&'a model::Endpoint>;
    /// The inbound listener of another workload; `None` where it is not known here.
    fn inbound(&self, address: SocketAddr) -> Option<&Listener>;
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked.
    pub request: Head,
    /// Who asks.
    pub client: Option<SpiffeId>,
    /// The name of the outbound listener.
    pub listener: String,
    /// How its route was found; `None` where bytes are forwarded.
    pub route: Option<RouteRecord>,
    /// What the route does; `None` without a route.
    pub action: Option<Action>,
    /// What comes of it.
    pub outcome: Outcome,
}

/// The parts of a request's head that decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// The method.
    pub method: String,
    /// The host, and the port where one was given.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Outcome {
    /// It reaches an application, whichever backend and endpoint is drawn.
    Forwarded,
    /// The mesh answers, as it is configured to.
    Answered {
        /// With this status.
        status: u16,
    },
    /// It is refused, at least by some of where it may arrive.
    Refused {
        /// The HTTP status that the client gets.
        status: u16,
        /// Why.
        reason: String,
    },
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It goes to a backend.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect {
        /// With this status.
        status: u16,
        /// To this URL.
        location: String,
    },
    /// The mesh answers.
    Respond {
        /// With this status.
        status: u16,
        /// And this text.
        body: String,
    },
    /// A route for a gRPC server without a sidecar; no request is forwarded by it.
    NonForwarding,
}

/// How a request is forwarded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// Injected delay and failure, in words.
    pub fault: Vec<String>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is tried again beyond what is always safe.
    pub retry: Option<Retry>,
    /// Clusters that get a copy, each with the part of the requests that is copied, in words.
    pub mirrors: Vec<String>,
    /// Where it may go.
    pub backends: Vec<Backend>,
}

/// How long things may take, in milliseconds. `None`: the sidecar's default; 0: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// The whole request, with all attempts.
    pub request: Option<u64>,
    /// Without a byte in either direction.
    pub idle: Option<u64>,
    /// The whole life of the stream.
    pub max_stream: Option<u64>,
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// On what, by Envoy's names; with `retriable-status-codes` also the statuses.
    pub on: Vec<String>,
    /// The most retries after the first attempt.
    pub attempts: u32,
    /// The limit on each attempt, in milliseconds.
    pub per_try_timeout: Option<u64>,
}

/// A cluster that a request may go to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its name.
    pub cluster: String,
    /// Its share of the requests, in percent.
    pub share: f64,
    /// The request as it goes there.
    pub becomes: Head,
    /// Changes to its headers, in words, in the order in which they are made.
    pub request_headers: Vec<String>,
    /// Changes to the response's headers, likewise.
    pub response_headers: Vec<String>,
    /// Whether the cluster exists.
    pub known: bool,
    /// The names whose addresses are its endpoints, where they are found by DNS.
    pub dns: Vec<String>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An address that a request may arrive at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where.
    pub address: String,
    /// The workload, `<namespace>/<name>`; empty where unknown.
    pub workload: String,
    /// Whether it may be used: `healthy`, `unhealthy` or `draining`.
    pub health: String,
    /// The identity that it must prove; `None`: it has no sidecar, or none is pinned.
    pub identity: Option<SpiffeId>,
    /// The connection to it is mTLS.
    pub mtls: bool,
    /// What its sidecar says; `None` where that is not known here.
    pub inbound: Option<Inbound>,
}

/// What a workload's own sidecar says to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// The name of its listener.
    pub listener: String,
    /// `strict`, `permissive` or `disabled`.
    pub mtls_mode: MtlsMode,
    /// Whether any chain of the listener takes the connection.
    pub accepted: bool,
    /// The verdict on the connection.
    pub connection: Option<AuthorizationRecord>,
    /// The verdict on the request; `None` where bytes are forwarded.
    pub request: Option<AuthorizationRecord>,
}

/// Which connections an inbound listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MtlsMode {
    /// Only mTLS.
    Strict,
    /// Both.
    Permissive,
    /// Only plaintext.
    Disabled,
}

impl Explanation {
    /// The names of the clusters that the request may go to.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        let forward = self.action.as_ref().and_then(|action| match action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect { .. } | Action::Respond { .. } | Action::NonForwarding => None,
        });
        forward.into_iter().flat_map(|forward| &forward.backends).map(|backend| backend.cluster.as_str())
    }
}

impl Inbound {
    /// Whether the request reaches the application.
    pub fn allowed(&self) -> bool {
        self.accepted && [&self.connection, &self.request].into_iter().flatten().all(|record| record.allowed)
    }
}

impl Endpoint {
    /// Whether new requests go there.
    pub fn usable(&self) -> bool {
        self.health == health(Health::Healthy)
    }
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        })
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Draining => "draining",
    }
}

/// Why there is no explanation. The fault is the configuration's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExplainError {
    /// The listener names a route configuration that is not there.
    MissingRoutes {
        /// The listener.
        listener: String,
        /// The route configuration.
        routes: String,
    },
    /// Its routes can't be compiled.
    Routes(RouteError),
    /// No chain of the listener is for such a request.
    NoChain {
        /// The listener.
        listener: String,
    },
}

impl fmt::Display for ExplainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingRoutes { listener, routes } => {
                write!(f, "listener {listener} names the route configuration {routes}, which is not there")
            }
            Self::Routes(error) => error.fmt(f),
            Self::NoChain { listener } => write!(
                f,
                "listener {listener} takes neither HTTP nor bytes for this name: ask for a name that one of its routes has"
            ),
        }
    }
}

impl std::error::Error for ExplainError {}

#[cfg(test)]
mod tests;
