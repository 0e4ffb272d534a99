//! The sidecar: a proxy beside every service.
//!
//! In: connections of the application (outbound) and of its peers (inbound), and configuration over xDS. Out: the same
//! traffic, routed, retried, encrypted, authorized and measured. The modules stand in the order in which a connection
//! meets them.

pub mod certs;
pub mod cni;
pub mod config;
pub mod redirect;

mod app;
mod worker;

mod detect;
mod io;
mod listener;
mod tcp;
mod tls;

mod backoff;
mod balance;
mod dns;
mod grpc;
mod http;
mod limit;
mod nameserver;
mod probes;
mod retry;
mod upstream;

pub mod admin;
mod snapshot;
mod telemetry;
mod xds;

mod error;

#[cfg(fuzzing)]
pub use xds::fuzzing;

pub use app::{AwaitError, AwaitSettings, RunError, run, wait};
