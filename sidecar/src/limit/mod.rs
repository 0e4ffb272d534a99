//! Limits on the rate and the number of requests that this workload takes.

/// The rate and concurrency limits of an inbound listener.
pub(crate) struct RequestLimits {}
