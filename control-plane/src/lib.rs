//! The control plane: reads configuration, makes the mesh model of it, and serves it to sidecars.
//!
//! In: Kubernetes objects, from a folder or an API server ([`source`]). Out: xDS resources, made from the model
//! ([`world`]).

pub mod kinds;
pub mod source;
pub mod world;
