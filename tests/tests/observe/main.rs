//! What operators see of a mesh with their own tools: the real Jaeger and the real Prometheus. Who has no Jaeger runs the
//! rest: `tests/observe` builds it.

mod callers;
mod flood;
mod hops;
mod jaeger;
mod prometheus;
mod refused;
mod sampled;
