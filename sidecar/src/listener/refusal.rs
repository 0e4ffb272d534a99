//! Why a connection goes no further, counted by reason.

use std::fmt;
use std::sync::Arc;

use crate::telemetry::metrics::{Counter, Registry};

/// Why a connection is closed without being carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No configuration says what to do with it (yet).
    NoListener,
    /// None of the listener's chains is for a connection like this; plaintext under strict mTLS, for one.
    NoChain,
    /// This workload has no certificate yet, and the chain asks for mesh TLS.
    NoCertificate,
    /// The client did not prove to be a workload of the mesh; the log line about it is written where it failed.
    Handshake,
    /// The client took too long to say what it wants.
    Silent,
    /// Policy denies it.
    Denied,
}

impl Refusal {
    const ALL: [Self; 6] =
        [Self::NoListener, Self::NoChain, Self::NoCertificate, Self::Handshake, Self::Silent, Self::Denied];

    fn label(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::NoChain => "no_chain",
            Self::NoCertificate => "no_certificate",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Denied => "denied",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoListener => "there is no configuration for this address (yet)",
            Self::NoChain => {
                "no filter chain is for a connection of this kind; under strict mTLS, that is anything but mesh TLS"
            }
            Self::NoCertificate => "this workload has no certificate yet",
            Self::Handshake => "the handshake failed",
            Self::Silent => "the client did not say in time what it wants",
            Self::Denied => "policy denies it",
        })
    }
}

/// The counters of all reasons.
#[derive(Clone)]
pub(crate) struct Refusals([Arc<Counter>; Refusal::ALL.len()]);

impl Refusals {
    /// Registers the counters.
    pub(crate) fn new(metrics: &Registry) -> Self {
        Self(Refusal::ALL.map(|refusal| {
            metrics.counter(
                "tulle_connections_refused",
                "Downstream connections that were closed without being carried, by reason.",
                &[("reason", refusal.label())],
            )
        }))
    }

    /// Counts a refusal.
    pub(super) fn count(&self, refusal: Refusal) {
        self.0[refusal as usize].increment();
    }

    /// How often connections were refused for a reason.
    #[cfg(test)]
    pub(super) fn value(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].value()
    }
}
