//! Tests against a real Kubernetes API server.

mod server;
mod status;
