//! The control plane: reads configuration, makes the mesh model of it, and serves it to sidecars.
//!
//! In: Kubernetes objects, from a folder or an API server ([`source`]). Out: xDS resources, made from the model
//! ([`world`]).

#![forbid(unsafe_code)]

pub mod api;
pub mod args;
pub mod ca;
pub mod caller;
pub mod grpc;
pub mod health;
pub mod inject;
pub mod kinds;
pub mod kubernetes;
pub mod leader;
pub mod metrics;
mod origin;
pub mod repair;
mod run;
pub mod source;
pub mod status;
pub mod tls;
pub mod virtual_addresses;
pub mod world;
pub mod xds;

pub use run::{Error, Ready, run, serve};
