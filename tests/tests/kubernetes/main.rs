//! Tests against a real Kubernetes API server.

mod routes;
mod server;
mod status;
