//! The vocabulary of the mesh and its decision engine.
//!
//! In: identities, addresses and the configuration model, built by the control plane from manifests or decoded from
//! xDS by the sidecar. Out: decisions (which route, which backend, allowed or denied), each with a record of why.
//!
//! This crate is pure. It never reads a clock, draws a random number, opens a socket or spawns a task: whoever calls it
//! passes in `now` and randomness. That is what lets the CLI give offline the very answer that a sidecar gives live.

#![forbid(unsafe_code)]

pub mod address;
pub mod authorize;
mod escape;
pub mod explain;
pub mod identity;
pub mod model;
pub mod pem;
pub mod route;
pub mod xds;
pub mod yaml;
