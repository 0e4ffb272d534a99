//! Why a connection goes no further, counted by reason.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::telemetry::lines::LineLimit;
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
    /// It does not begin with the header of the PROXY protocol that its listener wants.
    Unproxied,
    /// Policy denies it.
    Denied,
    /// It was made to a port for captured connections, and nobody has redirected it there.
    Loop,
    /// It was redirected here from an address that is not the workload's.
    Spoofed,
    /// The mesh does not know where it goes, and lets nothing else out.
    UnknownDestination,
    /// The control plane has not said whether the mesh knows where it goes.
    Unavailable,
}

impl Refusal {
    const ALL: [Self; 11] = [
        Self::NoListener,
        Self::NoChain,
        Self::NoCertificate,
        Self::Handshake,
        Self::Silent,
        Self::Unproxied,
        Self::Denied,
        Self::Loop,
        Self::Spoofed,
        Self::UnknownDestination,
        Self::Unavailable,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::NoChain => "no_chain",
            Self::NoCertificate => "no_certificate",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Unproxied => "unproxied",
            Self::Denied => "denied",
            Self::Loop => "loop",
            Self::Spoofed => "spoofed",
            Self::UnknownDestination => "unknown_destination",
            Self::Unavailable => "unavailable",
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
            Self::Unproxied => "it does not begin with the PROXY header that is wanted here",
            Self::Denied => "policy denies it",
            Self::Loop => "it came straight to a port for redirected connections, or was going to one",
            Self::Spoofed => "it was redirected here, but was not going to an address of this workload",
            Self::UnknownDestination => "the mesh does not know its destination, and outbound.policy is RegistryOnly",
            Self::Unavailable => {
                "the control plane has not said in time whether the mesh knows its destination; in doubt nothing goes \
                 out in plaintext"
            }
        })
    }
}

/// For each reason, its counter, and what keeps the log of it short.
pub(crate) struct Refusals([(Arc<Counter>, LineLimit); Refusal::ALL.len()]);

impl Refusals {
    /// Registers the counters.
    pub(crate) fn new(metrics: &Registry) -> Self {
        Self(Refusal::ALL.map(|refusal| {
            let counter = metrics.counter(
                "tulle_connections_refused",
                "Downstream connections that were closed without being carried, by reason.",
                &[("reason", refusal.label())],
            );
            (counter, LineLimit::default())
        }))
    }

    /// Counts a refusal; `true` where it is to be logged.
    #[must_use]
    pub(super) fn count(&self, refusal: Refusal) -> bool {
        let (counter, lines) = &self.0[refusal as usize];
        counter.increment();
        lines.admit(Instant::now(), "refused connections")
    }

    /// How often connections were refused for a reason.
    #[cfg(test)]
    pub(super) fn value(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].0.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::testing::shared;

    #[test]
    fn a_flood_of_one_reason_is_counted_whole_and_hides_no_other() {
        let refusals = Refusals::new(&shared().0.telemetry.metrics);
        let logged = (0..1000).filter(|_| refusals.count(Refusal::NoChain)).count();
        assert!((5..1000).contains(&logged), "{logged}");
        assert_eq!(refusals.value(Refusal::NoChain), 1000);
        assert!(refusals.count(Refusal::Denied));
    }
}
