//! `tulle status`: each connected proxy, and how far it is.

use std::time::SystemTime;

use clap::Args;
use tulle_control_plane::api::types::{ProxyList, ProxyStatus, Time, TypeStatus};
use tulle_control_plane::ca::BACKDATE;

use super::cluster::ClusterArgs;
use super::{forward, remote};
use crate::output::table::Table;
use crate::output::{Failure, OutputArgs, print, style};

/// Whom to ask.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The HTTP API of a control plane outside of a cluster; http://127.0.0.1:15014 where there is no kubeconfig.
    #[arg(long, value_name = "URL", env = "TULLE_CONTROL_PLANE")]
    control_plane: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle status                            all replicas of the cluster's control plane
  tulle status --control-plane http://127.0.0.1:15014 -o json

Of each type of configuration: synced (everything that was sent is acknowledged), stale (the last response is not
answered yet), or nacked (something is rejected, and its last good version is in force; the reason follows).";

/// Shows every proxy.
///
/// # Errors
/// When the control plane does not answer.
pub async fn run(args: &StatusArgs) -> Result<(), Failure> {
    let list = match &args.control_plane {
        Some(control_plane) => proxies(control_plane).await?,
        None if args.cluster.is_meant() => {
            let mut all = ProxyList::default();
            for replica in &forward::control_planes(&args.cluster).await? {
                all.proxies.extend(proxies(&replica.url).await?.proxies);
            }
            all.proxies.sort_by(|left, right| left.node.cmp(&right.node));
            all
        }
        None => proxies(DEFAULT).await?,
    };
    print(args.output.output, &list, |list| table(list, SystemTime::now()))
}

/// Where a control plane on this machine serves its HTTP API.
const DEFAULT: &str = "http://127.0.0.1:15014";

async fn proxies(control_plane: &str) -> Result<ProxyList, Failure> {
    remote::get(control_plane, "/api/v1/proxies", &[]).await
}

/// The types, by their usual names.
const TYPES: [&str; 6] = ["LDS", "RDS", "CDS", "EDS", "SDS", "DNS"];

fn table(list: &ProxyList, now: SystemTime) -> String {
    if list.proxies.is_empty() {
        return "No proxy is connected.\n".into();
    }
    let titles = [&["PROXY", "IDENTITY", "CONNECTED"], &TYPES[..], &["CERTIFICATE", "VERSION"]].concat();
    let mut table = Table::new(&titles);
    let mut reasons = String::new();
    for proxy in &list.proxies {
        let mut row = vec![
            proxy.node.clone(),
            proxy.identity.clone(),
            now.duration_since(proxy.connected_since.0)
                .map_or_else(|_| "now".into(), |age| ago(age.as_secs())),
        ];
        row.extend(TYPES.map(|kind| proxy.types.get(kind).map_or_else(|| style::faint("-"), state)));
        row.push(credential(proxy, now));
        row.push(format!("{} {}", proxy.user_agent, proxy.version).trim().to_owned());
        table.row(row);
        for (kind, status) in &proxy.types {
            for nack in &status.nacked {
                let (at, what) = (nack.at, style::bad("rejects"));
                reasons.push_str(&format!(
                    "{}: {what} {kind} {}: {} ({at})\n",
                    proxy.node, nack.name, nack.reason
                ));
            }
        }
    }
    let text = table.render();
    if reasons.is_empty() { text } else { format!("{text}\n{reasons}") }
}

fn state(status: &TypeStatus) -> String {
    match (status.nacked.len(), status.synced) {
        (0, true) => style::good(format!("synced {}", status.subscribed)),
        (0, false) => style::doubtful("stale"),
        (nacked, _) => style::bad(format!("nacked {nacked}")),
    }
}

/// What it connected with: how old that is, and how long it is still good.
fn credential(proxy: &ProxyStatus, now: SystemTime) -> String {
    let left = |until: Time| match until.0.duration_since(now) {
        Ok(left) => format!("expires in {}", ago(left.as_secs())),
        Err(_) => style::bad("expired"),
    };
    // A certificate is valid from before its making, for peers whose clock is behind.
    let made = proxy.certificate_since.map(|since| since.0 + BACKDATE);
    let age = made.and_then(|made| now.duration_since(made).ok()).unwrap_or_default();
    match (proxy.certificate_expires, proxy.token_expires) {
        (Some(until), _) => format!("{} old, {}", ago(age.as_secs()), left(until)),
        (None, Some(until)) => format!("join token, {}", left(until)),
        (None, None) => style::faint("-"),
    }
}

/// A length of time in its two largest units.
fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tulle_control_plane::api::types::Nack;

    use super::*;

    #[test]
    fn every_state_of_a_proxy_is_shown() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let after = |seconds| Time(now + Duration::from_secs(seconds));
        let nack =
            Nack { name: "cart:80".into(), version: "1".into(), reason: "no cluster".into(), at: Time(now) };
        let types = BTreeMap::from([
            ("LDS".to_owned(), TypeStatus { nacked: vec![nack], ..TypeStatus::default() }),
            ("RDS".to_owned(), TypeStatus::default()),
            ("CDS".to_owned(), TypeStatus { synced: true, subscribed: 3, ..TypeStatus::default() }),
        ]);
        let proxy = ProxyStatus {
            node: "cart-1".into(),
            identity: "spiffe://td/ns/shop/sa/cart".into(),
            address: None,
            user_agent: "tulle".into(),
            version: "0.1.0".into(),
            protocol: "delta".into(),
            connected_since: Time(now - Duration::from_secs(3700)),
            certificate_since: Some(Time(now - BACKDATE - Duration::from_secs(30))),
            certificate_expires: Some(after(90_000)),
            root: None,
            token_expires: None,
            synced: false,
            types,
        };
        let joined =
            ProxyStatus { certificate_expires: None, token_expires: Some(after(61)), ..proxy.clone() };
        let expired =
            ProxyStatus { certificate_expires: Some(Time(now - Duration::from_secs(1))), ..proxy.clone() };
        let list = ProxyList { proxies: vec![proxy, joined, expired] };
        let text = anstream::adapter::strip_str(&table(&list, now)).to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "cart-1",
                "spiffe://td/ns/shop/sa/cart",
                "1h1m",
                "nacked 1",
                "stale",
                "synced 3",
                "-",
                "-",
                "-",
                "30s old, expires in 1d1h",
                "tulle 0.1.0"
            ]
        );
        assert_eq!(lines[2][9], "join token, expires in 1m1s");
        assert_eq!(lines[3][9], "30s old, expired");
        assert!(
            text.contains("cart-1: rejects LDS cart:80: no cluster (1970-01-12T13:46:40.000Z)"),
            "{text}"
        );
        assert_eq!(table(&ProxyList::default(), now), "No proxy is connected.\n");
    }
}
