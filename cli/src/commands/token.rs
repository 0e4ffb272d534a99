//! `tulle token`: a join token, by which a workload without a certificate proves who it is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use tulle_control_plane::ca::tokens;
use tulle_control_plane::kinds;

use crate::output::{Failure, write};

/// For whom the token is.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The control plane's state folder, which holds the key that signs.
    #[arg(long, env = "TULLE_STATE")]
    state: PathBuf,
    /// The workload's namespace.
    #[arg(long, short)]
    namespace: String,
    /// The workload's service account.
    #[arg(long)]
    service_account: String,
    /// How long it may be used, such as 24h, 90m or 3600s.
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    ttl: Duration,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle token --state /var/lib/tulle -n shop --service-account cart > cart.token
  tulle token --state /var/lib/tulle -n shop --service-account cart --ttl 10m

Whoever has the token can get a certificate for this service account until the token expires: keep it in a file that
only the workload can read.";

/// Prints the token.
///
/// # Errors
/// When the state folder has no key that can be used, or a name can't be part of an identity.
pub fn run(args: &TokenArgs) -> Result<(), Failure> {
    let now = SystemTime::now();
    let token = tokens::mint(&args.state, &args.namespace, &args.service_account, args.ttl, now);
    write(&format!("{}\n", token.map_err(Failure::new)?))
}

/// At least a second, which is what a token counts in.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = text.parse::<kinds::Duration>()?.get();
    let long_enough = lifetime >= Duration::from_secs(1);
    long_enough.then_some(lifetime).ok_or_else(|| format!("{text} is shorter than 1s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_has_a_unit_and_is_not_over_at_once() {
        assert_eq!(lifetime("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "5", "h", "0s", "999ms", "-1h", "1w", "1é"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }
}
