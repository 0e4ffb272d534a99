use std::path::Path;

use clap::Parser;
use tracing::Level;

use super::*;

const WHOLE: &str = r#"
workload: {namespace: shop, serviceAccount: cart, name: cart-7d4}
trustDomain: example.org
controlPlane:
  address: "[::1]:15012"
  serverName: control.tulle
  rootFile: /run/root.pem
  tokenFile: /run/token
identity: {certificateFile: a, keyFile: b, bundleFile: c}
outbound:
  proxy: 127.0.0.1:0
  ports:
    - {listen: "127.0.0.1:9001", service: "Cart.shop:80"}
  policy: RegistryOnly
  demandTimeout: 250ms
inbound:
  - {listen: "10.0.0.7:8080", app: "127.0.0.1:18080"}
dns: {listen: "127.0.0.1:0", upstream: [10.0.0.2, "[fd00::2]:5353"], clusterDomain: Example.}
admin: "[::1]:0"
health: 0.0.0.0:0
stateDir: /var/lib/tulle
workers: 3
otlp: {endpoint: "http://127.0.0.1:4317"}
drain: {gracePeriod: 1m, lameDuck: 0s}
log: {level: "warn,tulle_sidecar=debug", format: json}
"#;

const LEAST: &str = r#"
workload: {namespace: shop, serviceAccount: cart, name: cart-7d4}
controlPlane: {address: "control:15012", rootFile: root.pem}
"#;

#[test]
fn a_whole_file_sets_everything() {
    let config = load(WHOLE, &[]).expect("valid");
    assert_eq!(config.control_plane.address.to_string(), "[::1]:15012");
    assert_eq!(config.control_plane.server_name, "control.tulle");
    assert_eq!(config.outbound.ports[0].service.to_string(), "cart.shop:80");
    assert_eq!(config.outbound.policy, OutboundPolicy::RegistryOnly);
    assert_eq!(config.outbound.demand_timeout, Duration::from_millis(250));
    assert_eq!(config.outbound.dead_peer_timeout, Duration::from_secs(30), "the default");
    assert_eq!(config.inbound[0].app.to_string(), "127.0.0.1:18080");
    assert_eq!(config.workers, 3);
    assert_eq!(config.drain, Drain { grace_period: Duration::from_secs(60), lame_duck: Duration::ZERO });
    assert_eq!(config.log.format, LogFormat::Json);
    let dns = config.dns.expect("set");
    let upstream: Vec<_> = dns.upstream.expect("set").iter().map(ToString::to_string).collect();
    assert_eq!(upstream, ["10.0.0.2:53", "[fd00::2]:5353"]);
    assert_eq!(dns.cluster_domain.as_str(), "example");
    assert_eq!(config.identity.expect("set").key_file, Path::new("b"));
}

#[test]
fn defaults_fill_what_is_not_set() {
    let config = load(LEAST, &[]).expect("valid");
    assert_eq!(config.trust_domain.as_str(), "cluster.local");
    assert_eq!(config.control_plane.server_name, "control");
    assert_eq!(config.outbound.proxy, Some(DEFAULT_PROXY));
    assert_eq!((config.admin, config.health), (DEFAULT_ADMIN, DEFAULT_HEALTH));
    assert!((1..=2).contains(&config.workers));
    assert_eq!(config.identity, None);
    assert_eq!(config.dns, None);
    let config = load(&format!("{LEAST}dns: {{}}"), &[]).expect("valid");
    let dns = config.dns.expect("it is on");
    assert_eq!(
        (dns.listen, dns.upstream, dns.cluster_domain.as_str()),
        (dns::DEFAULT_LISTEN, None, "cluster.local")
    );
}

#[test]
fn a_flag_beats_the_file_and_replaces_its_lists() {
    let config = load(
        WHOLE,
        &[
            "--namespace",
            "other",
            "--port",
            "127.0.0.1:0=a.b:1",
            "--port",
            "127.0.0.1:0=a.b:2",
            "--workers",
            "1",
        ],
    )
    .expect("valid");
    assert_eq!(config.workload.namespace, "other");
    assert_eq!(config.workload.service_account, "cart");
    assert_eq!(config.outbound.ports.len(), 2);
    assert_eq!(config.workers, 1);
}

#[test]
fn a_fault_in_the_file_is_told_with_line_field_and_fix() {
    for (from, to, expected) in [
        ("namespace: shop", "namepsace: shop", &["f.yaml:2:", "workload", "namepsace", "serviceAccount"][..]),
        ("admin: \"[::1]:0\"", "admin: 0.0.0.0:1", &["f.yaml:19:", "admin", "loopback", "127.0.0.1:0"]),
        (
            "demandTimeout: 250ms",
            "demandTimeout: 250",
            &["f.yaml:15:", "outbound.demandTimeout", "250ms, 30s"],
        ),
        ("app: \"127.0.0.1:18080\"", "app: here", &["f.yaml:17:", "inbound[0].app", "IP address and a port"]),
        (
            "listen: \"10.0.0.7:8080\"",
            "listen: 0.0.0.0:80",
            &["inbound[0].listen", "one address of this workload"],
        ),
        ("10.0.0.2,", "ns1.example,", &["dns.upstream[0]", "ns1.example", "10.0.0.2"]),
        ("clusterDomain: Example.", "clusterDomain: a..b", &["dns.clusterDomain", "cluster.local"]),
        ("policy: RegistryOnly", "policy: Any", &["outbound.policy", "Any", "AllowAny"]),
        ("http://127.0.0.1:4317", "127.0.0.1:4317", &["otlp.endpoint", "http://127.0.0.1:4317"]),
        ("trustDomain: example.org", "trustDomain: Example", &["trustDomain", "a-z"]),
        ("workers: 3", "workers: 0", &["f.yaml:22:", "workers"]),
        ("level: \"warn,tulle_sidecar=debug\"", "level: loud", &["log.level", "info"]),
        ("tulle_sidecar=debug\"", "tulle_sidecar=\"", &["log.level", "info"]),
        ("tulle_sidecar=debug\"", "[call]=debug\"", &["log.level", "info"]),
        (", keyFile: b", "", &["identity", "keyFile"]),
        ("log: {", "log: {{", &["f.yaml:"]),
    ] {
        let text = WHOLE.replacen(from, to, 1);
        assert_ne!(text, WHOLE, "{from} stands in the file");
        let message = load(&text, &[]).expect_err(to).to_string();
        for part in expected {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
        assert!(!message.contains('\n'), "{message:?}");
    }
}

#[test]
fn what_is_missing_is_told_with_each_way_to_set_it() {
    let message = load("", &[]).expect_err("nothing is set").to_string();
    for part in ["controlPlane.address", "--control-plane", "TULLE_CONTROL_PLANE", "15012"] {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    let error = Config::load(&Settings { config: Some("/does/not/exist".into()), ..Settings::default() });
    assert!(error.expect_err("no file").to_string().starts_with("/does/not/exist: "));
}

#[test]
fn two_listeners_may_not_share_an_address() {
    let message = load(LEAST, &["--admin", "127.0.0.1:15001"]).expect_err("a conflict").to_string();
    assert!(message.contains("admin") && message.contains("outbound.proxy"), "{message}");
    let twice = ["--port", "127.0.0.1:0=a.b:1", "--port", "127.0.0.1:0=a.b:1"];
    assert!(load(LEAST, &twice).expect_err("a conflict").to_string().contains("a.b:1"));
    load(LEAST, &["--admin", "127.0.0.1:0", "--proxy", "127.0.0.1:0"])
        .expect("port 0 is a new one each time");
}

#[test]
fn capture_is_turned_on_by_its_section_or_its_flag() {
    let config = load(&format!("{LEAST}capture: {{addresses: [\"fd00::7\", 10.0.0.7, 10.0.0.7]}}\n"), &[]);
    let config = config.expect("valid");
    let capture = config.capture.expect("the section is there");
    assert_eq!((capture.outbound, capture.inbound), (15001, 15006));
    let own: Vec<_> = capture.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(own, ["10.0.0.7", "fd00::7"]);
    assert_eq!(config.outbound.proxy, None, "its port is that of capture");

    let own = ["--address", "10.0.0.7", "--capture-outbound", "1", "--proxy", "127.0.0.1:0"];
    let config = load(LEAST, &[&["--capture"], &own[..]].concat()).expect("valid");
    assert_eq!(config.capture.expect("the flag is there").outbound, 1);
    assert!(config.outbound.proxy.is_some());

    assert_eq!(load(&format!("{LEAST}capture: {{}}\n"), &["--capture=false"]).expect("valid").capture, None);
}

#[test]
fn what_capture_excludes_is_told() {
    let own = "capture: {addresses: [10.0.0.7]}\n";
    for (text, flags, expected) in [
        (LEAST.to_owned(), &["--capture-inbound", "1"][..], &["capture.inbound", "--capture"][..]),
        (LEAST.to_owned(), &["--address", "10.0.0.7"], &["capture.addresses", "--capture"]),
        (format!("{LEAST}{own}"), &["--capture-inbound", "15001"], &["capture.inbound", "capture.outbound"]),
        (format!("{LEAST}{own}"), &["--proxy", "127.0.0.1:15001"], &["outbound.proxy", "capture.outbound"]),
        (format!("{LEAST}{own}"), &["--health", "0.0.0.0:15001"], &["health", "capture.outbound"]),
        (format!("{LEAST}{own}"), &["--health", "10.0.0.7:15006"], &["health", "capture.inbound"]),
        (format!("{LEAST}{own}"), &["--inbound", "10.0.0.7:1=127.0.0.1:2"], &["inbound", "capture"]),
        (format!("{LEAST}capture: {{addresses: [127.0.0.1]}}"), &[], &["capture.addresses", "10.0.0.7"]),
        (format!("{LEAST}capture: {{outbound: 70000}}"), &[], &["capture.outbound"]),
    ] {
        let message = load(&text, flags).expect_err("a conflict").to_string();
        for part in expected {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
    }
}

#[test]
fn a_resolver_may_not_be_its_own_upstream() {
    for server in ["127.0.0.1:15053", "[::1]:15053"] {
        let message = load(LEAST, &["--dns-upstream", server]).expect_err("a loop").to_string();
        assert!(message.contains("dns.upstream") && message.contains(server), "{message}");
    }
    load(LEAST, &["--dns-upstream", "127.0.0.1"]).expect("another one of this host");
}

#[test]
fn the_lame_duck_fits_into_the_grace_period() {
    let config = load(LEAST, &["--grace-period", "1s"]).expect("the default shrinks");
    assert_eq!(config.drain.lame_duck, Duration::from_secs(1));
    assert!(load(LEAST, &["--grace-period", "1s", "--lame-duck", "2s"]).is_err());
}

fn load(text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
    let arguments =
        Arguments::try_parse_from(["tulle-sidecar", "run"].iter().chain(flags)).expect("valid flags");
    let Command::Run(settings) = arguments.command else { unreachable!("`run` was given") };
    Config::combine(file::parse(Path::new("f.yaml"), text)?, &settings)
}

#[test]
fn what_is_logged_is_told_by_level_and_by_module() {
    let level: LogLevel = " warn, tulle_sidecar::xds=DEBUG,h2=off,".parse().unwrap();
    for (module, at, logged) in [
        ("tulle_sidecar::http", Level::WARN, true),
        ("tulle_sidecar::http", Level::INFO, false),
        ("tulle_sidecar::xds::engine", Level::DEBUG, true),
        ("tulle_sidecar::xds::engine", Level::TRACE, false),
        ("h2::codec", Level::ERROR, false),
    ] {
        assert_eq!(level.targets().would_enable(module, &at), logged, "{module} {at}");
    }
    for text in ["", ",", "loud", "info,loud", "=debug", "tulle_sidecar=", "tulle_sidecar=loud", "a b=info"] {
        assert!(text.parse::<LogLevel>().is_err(), "{text:?}");
    }
}
