//! Envoy and proxyless gRPC in one mesh with our sidecars, under our control plane: real processes on both ends.

mod certs;
mod envoy;
mod grpc_client;
mod grpc_server;
mod support;
