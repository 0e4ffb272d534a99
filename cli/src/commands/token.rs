//! `tulle token`: a join token, by which a workload without a certificate proves who it is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use tulle_control_plane::ca::tokens;

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
    #[arg(long, default_value = "24h", value_parser = duration)]
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

/// A whole number of seconds, minutes, hours or days, with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration: write a number and s, m, h or d, such as 24h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(error)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(error()),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    number.checked_mul(seconds).filter(|&seconds| seconds > 0).map(Duration::from_secs).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("90m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "5", "h", "0s", "-1h", "1w", "99999999999999999999d", "9999999999999999999d", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
