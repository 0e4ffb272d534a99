//! Virtual addresses that change hands while they are in use.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use tulle_tests::{LIMIT, fetch, wait_for};

use crate::{ECHO, Pair, get, replica};

const NEW: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 17));

/// Waits until an address leads to a service, whose answer begins with the host's name.
async fn leads(pair: &Pair, address: IpAddr, to: &str) {
    let check = || async {
        match get(&pair.client.host, &format!("http://{address}/")).await {
            Ok(answer) if answer.starts_with(&format!("{to} ")) => Ok(()),
            other => Err(format!("{address} does not lead to {to}: {other:?}")),
        }
    };
    wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn an_address_leads_to_whoever_has_it_now() {
    let pair = Pair::start().await;
    let ports = [("http", 80, "http")];
    let (other, _app) = replica(&pair.mesh, "other").await;
    pair.mesh.workload_on(&other.host, "other", other.host.v4, &[("http", 8080)]);
    let old = ECHO[0];
    leads(&pair, old, "echo").await;
    // It moves.
    pair.mesh.service("echo", &[NEW], &ports);
    leads(&pair, NEW, "echo").await;
    // Its old address is nobody's, and then another's.
    let nobody = || async {
        let answer = get(&pair.client.host, &format!("http://{old}/")).await;
        let (_, config) = fetch(&format!("http://{}/config", pair.client.admin)).await?;
        let config: Value = serde_json::from_str(&config).map_err(|error| error.to_string())?;
        let absent = config["absent"].as_array().into_iter().flatten();
        let known = absent.map(ToString::to_string).any(|name| name.contains(&format!("{old}:80")));
        if answer.is_err() && known {
            Ok(())
        } else {
            Err(format!("{old} still leads somewhere: {answer:?}"))
        }
    };
    wait_for(LIMIT, nobody).await.unwrap_or_else(|error| panic!("{error}"));
    pair.mesh.service("other", &[old], &ports);
    leads(&pair, old, "other").await;
    leads(&pair, NEW, "echo").await;
    // And in one step: both change places.
    pair.mesh.service("echo", &[old], &ports);
    pair.mesh.service("other", &[NEW], &ports);
    leads(&pair, old, "echo").await;
    leads(&pair, NEW, "other").await;
}
