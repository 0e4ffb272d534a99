//! `tulle`: the command line of the mesh, and what it shares with the end-to-end tests.

#![forbid(unsafe_code)]

pub mod commands;
pub mod demo;
pub mod local;
pub mod output;
