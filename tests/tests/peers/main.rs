//! Envoy and proxyless gRPC in one mesh with our sidecars, under our control plane: real processes on both ends.

mod certs;
