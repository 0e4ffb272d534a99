//! The commands, one file each.

pub mod check;
pub mod config;
pub mod explain;
mod manifests;
mod remote;
pub mod status;
pub mod token;
