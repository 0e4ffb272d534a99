//! The HTTP API of port 15014: what the control plane knows, for people and for the CLI.

pub mod types;
