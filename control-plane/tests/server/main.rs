//! The control plane's gRPC side as its clients see it: real TLS sockets, real gRPC, a catalog that the test writes.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod certificates;
mod delta;
mod mesh;
mod program;
mod sotw;
mod support;
