//! What `tulle-sidecar validate` says of redirection that works, does not, or only seems to.

use std::net::Ipv4Addr;

use tulle_tests::hosts::{APP_UID, Host, Network};

use super::{LOOPBACK, sh, sidecar};

const CELLS: [&str; 4] = ["outbound IPv4", "outbound IPv6", "inbound IPv4", "inbound IPv6"];

/// The exit code and what is said of each direction and family.
async fn validate(host: &Host, arguments: &[&str]) -> (Option<i32>, [String; 4]) {
    let finished = sidecar(host, APP_UID, &[&["validate"], arguments].concat()).await;
    let mut lines = finished.stdout.lines().map(str::to_owned);
    let said = CELLS.map(|cell| {
        let line = lines.next().unwrap_or_else(|| panic!("{cell}: {finished:?}"));
        line.strip_prefix(&format!("{cell}: ")).unwrap_or_else(|| panic!("{line}")).to_owned()
    });
    assert_eq!(lines.next(), None);
    (finished.status.code(), said)
}

async fn expect(host: &Host, arguments: &[&str], code: i32, words: [&str; 4]) {
    let (got, said) = validate(host, arguments).await;
    assert_eq!(got, Some(code), "{said:?}");
    for (said, words) in said.iter().zip(words) {
        assert!(said.starts_with(words), "{said:?} is not {words:?}");
    }
}

async fn init(host: &Host, arguments: &[&str]) {
    let finished = sidecar(host, 0, &[&["init"], arguments].concat()).await;
    assert!(finished.status.success(), "{finished:?}");
}

#[tokio::test]
async fn redirection_is_proven_while_the_rules_are_there() {
    let network = Network::new();
    let host = network.host("here");
    for mode in ["nftables", "iptables"] {
        expect(&host, &[], 95, ["not redirected: "; 4]).await;
        init(&host, &["--mode", mode]).await;
        expect(&host, &[], 0, ["redirected"; 4]).await;
        // Whatever is skipped, the probes are not.
        let all = [
            "--skip-inbound-ports=1-65535",
            "--skip-outbound-ports=1-65535",
            "--skip-subnets=0.0.0.0/0,::/0",
        ];
        init(&host, &[&["--mode", mode][..], &all].concat()).await;
        expect(&host, &[], 0, ["redirected"; 4]).await;
        init(&host, &["--mode", mode, "--cleanup"]).await;
    }
    let (_, said) = validate(&host, &[]).await;
    assert!(said[0].contains("127.0.0.1:15009") && said[0].contains("`tulle-sidecar init`"), "{said:?}");
    assert!(said[3].contains("[::1]:15010"), "{said:?}");
}

#[tokio::test]
async fn other_ports_than_those_of_the_rules_prove_nothing() {
    let network = Network::new();
    let host = network.host("here");
    init(&host, &["--outbound-port", "16001", "--inbound-port", "16006"]).await;
    expect(&host, &["--outbound-port=16001", "--inbound-port=16006"], 0, ["redirected"; 4]).await;
    expect(&host, &[], 95, ["not redirected: "; 4]).await;
    let half = ["redirected", "redirected", "not redirected: ", "not redirected: "];
    expect(&host, &["--outbound-port=16001"], 95, half).await;
    // Redirected, but to the other direction's port.
    let foreign = ["not proven: it is not the sidecar's outbound listener"; 2];
    let inbound = ["not proven: it is not the sidecar's inbound listener"; 2];
    let crossed = [foreign[0], foreign[1], inbound[0], inbound[1]];
    expect(&host, &["--outbound-port=16006", "--inbound-port=16001"], 95, crossed).await;
}

#[tokio::test]
async fn whoever_else_holds_the_ports_is_not_taken_for_a_sidecar() {
    let network = Network::new();
    let host = network.host("here");
    init(&host, &[]).await;
    let hold = |port| LOOPBACK.map(|ip| host.listen((ip, port)).expect("it is free"));
    let silent = hold(15001);
    let silence = ["not proven: nobody answered"; 2];
    let expected = [silence[0], silence[1], "redirected", "redirected"];
    expect(&host, &["--timeout=3s"], 95, expected).await;
    drop(silent);
    let [v4, v6] = hold(15006);
    let greet = async {
        use tokio::io::AsyncWriteExt;
        loop {
            let accepted = tokio::select! { one = v4.accept() => one, one = v6.accept() => one };
            let (mut stream, _) = accepted.expect("a connection");
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    };
    let foreign = "not proven: it is not the sidecar's inbound listener that answers on 127.0.0.1:15010";
    let foreign_v6 = "not proven: it is not the sidecar's inbound listener that answers on [::1]:15010";
    tokio::select! {
        () = expect(&host, &[], 95, ["redirected", "redirected", foreign, foreign_v6]) => (),
        () = greet => (),
    }
}

#[tokio::test]
async fn a_host_without_ipv6_has_nothing_to_redirect_there() {
    let network = Network::new();
    let host = network.host_without_ipv6("here");
    let nothing = "nothing to redirect: no interface has an IPv6 address";
    expect(&host, &[], 95, ["not redirected: ", nothing, "not redirected: ", nothing]).await;
    for mode in ["nftables", "iptables"] {
        init(&host, &["--mode", mode]).await;
        expect(&host, &[], 0, ["redirected", nothing, "redirected", nothing]).await;
        init(&host, &["--mode", mode, "--cleanup"]).await;
    }
}

#[tokio::test]
async fn a_loopback_that_is_not_in_order_is_named() {
    let network = Network::new();
    let host = network.host("here");
    init(&host, &[]).await;
    sh(&host, "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6").await;
    let (code, said) = validate(&host, &[]).await;
    assert_eq!(code, Some(95), "{said:?}");
    assert_eq!((said[0].as_str(), said[2].as_str()), ("redirected", "redirected"));
    assert!(said[1].contains("net.ipv6.conf.lo.disable_ipv6=0"), "{said:?}");
    sh(&host, "ip link set lo down").await;
    let (code, said) = validate(&host, &["--timeout=1s"]).await;
    assert_eq!(code, Some(95), "{said:?}");
    assert!(said[0].contains("ip link set lo up"), "{said:?}");
}

/// Not below 1024 without the right to.
#[tokio::test]
async fn a_port_that_can_not_be_held_is_an_error_of_another_code() {
    let network = Network::new();
    let host = network.host("here");
    sh(&host, "echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start").await;
    let failed = sidecar(&host, APP_UID, &["validate", "--outbound-port", "80"]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains(&format!("{}:80 can't be listened on", Ipv4Addr::LOCALHOST)),
        "{failed:?}"
    );
}
