//! The commands, one file each.

pub mod analyze;
pub mod bootstrap;
pub mod certs;
pub mod check;
mod cluster;
pub mod config;
pub mod explain;
mod forward;
pub mod inject;
pub mod install;
mod manifests;
mod remote;
pub mod status;
pub mod token;
