//! The proof that connections are redirected, without which a sidecar that captures them is not ready: what is not
//! redirected goes around it, in plaintext and past every policy.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::redirect::probe::{Proof, probe};
use crate::telemetry::metrics::Registry;

/// The longest that one probe may take. It stays on this host.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after a probe has failed the next one is made.
const AGAIN: Duration = Duration::from_secs(1);

/// Why redirection is not proven; `None` once it is.
pub(super) type Unproven = watch::Receiver<Option<String>>;

/// Probes redirection until it is proven for both directions, and for each family that the host has.
pub(super) fn prove(metrics: &Registry) -> (Option<JoinHandle<()>>, Unproven) {
    let help = "1 once connections of both directions and of each family are known to be redirected, else 0.";
    let proven = metrics.gauge("tulle_redirection_proven", help, &[]);
    let (reason, unproven) = watch::channel(Some("it is being probed".to_owned()));
    let proving = tokio::spawn(async move {
        loop {
            let proof = probe(PROBE_TIMEOUT).await;
            if proof.is_complete() {
                tracing::info!("connections are redirected: the proof is complete");
                proven.set(1);
                reason.send_replace(None);
                return;
            }
            let missing = missing(&proof);
            if reason.send_replace(Some(missing.clone())).as_ref() != Some(&missing) {
                tracing::warn!("connections are not redirected yet: {}", missing.replace('\n', "; "));
            }
            sleep(AGAIN).await;
        }
    });
    (Some(proving), unproven)
}

/// What the proof lacks, a line for each direction and family.
fn missing(proof: &Proof) -> String {
    let lacking = proof.cells.iter().filter(|cell| !cell.outcome.is_good());
    lacking.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
