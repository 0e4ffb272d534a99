//! Strategies that make every valid model: each variant, each field set and unset. What the model rules out (an empty name,
//! weights that sum to 0) is never made, since decoding refuses it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::*;

mod cluster;
mod listener;
mod route;

pub(super) use cluster::{assignment, cluster};
pub(super) use listener::listener;
pub(super) use route::route_configuration;

pub(super) fn secret() -> BoxedStrategy<Secret> {
    let block = |kind: &'static str| {
        "[A-Za-z0-9+/]{4,64}={0,2}"
            .prop_map(move |body| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"))
    };
    let chain = || vec(block("CERTIFICATE"), 1..3).prop_map(|blocks| blocks.concat());
    let key = select(vec!["PRIVATE KEY", "EC PRIVATE KEY"]).prop_flat_map(block).prop_map(PrivateKey::new);
    let value = prop_oneof![
        chain().prop_map(SecretValue::TrustBundle),
        (chain(), of(key)).prop_map(|(chain, key)| SecretValue::Certificate { chain, key }),
    ];
    (name(), value).prop_map(|(name, value)| Secret { name, value }).boxed()
}

pub(super) fn dns_name() -> BoxedStrategy<DnsName> {
    let domain = || "[a-z0-9-]{1,8}(\\.[a-z0-9_-]{1,8}){0,4}";
    let target = (domain(), port(), any::<u16>(), any::<u16>())
        .prop_map(|(host, port, priority, weight)| DnsTarget { host, port, priority, weight });
    let service =
        ("_[a-z][a-z0-9-]{0,14}\\._(tcp|udp|sctp)", domain()).prop_map(|(port, of)| format!("{port}.{of}"));
    let answer = prop_oneof![
        (domain(), vec(any::<IpAddr>(), 1..4).prop_map(DnsRecords::Addresses)),
        (service, vec(target, 1..4).prop_map(DnsRecords::Services)),
        (domain(), domain().prop_map(DnsRecords::Alias)),
    ];
    let ttl = (0..=86_400_u64).prop_map(Duration::from_secs);
    (answer, ttl).prop_map(|((name, records), ttl)| DnsName { name, ttl, records }).boxed()
}

/// A name, as hosts, clusters and policies have them.
fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9.|:_#/-]{0,20}"
}

/// Any text, also empty, with characters of several bytes.
fn text() -> impl Strategy<Value = String> {
    "[ -~äß€]{0,16}"
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9._~%-]{1,6}){1,3}"
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        (0..10_000_u64).prop_map(Duration::from_millis),
        Just(Duration::from_secs(86_400)),
    ]
}

fn positive() -> impl Strategy<Value = Duration> {
    duration().prop_map(|duration| duration.max(Duration::from_millis(1)))
}

fn port() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

fn socket() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), port()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn network() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128_u8).prop_map(|(ip, length)| {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length.min(longest)).unwrap()
    })
}

fn fraction() -> impl Strategy<Value = PerMillion> {
    (0..=PerMillion::ALL.0).prop_map(PerMillion)
}

fn regex() -> impl Strategy<Value = Regex> {
    select(vec!["a", "/v[0-9]+/.*", "(?i)x|y", r"\d{3}"]).prop_map(|source| Regex::new(source).unwrap())
}

fn string_match() -> BoxedStrategy<StringMatch> {
    prop_oneof![
        (text(), any::<bool>()).prop_map(|(value, ignore_case)| StringMatch::Exact { value, ignore_case }),
        (text(), any::<bool>()).prop_map(|(value, ignore_case)| StringMatch::Prefix { value, ignore_case }),
        (text(), any::<bool>()).prop_map(|(value, ignore_case)| StringMatch::Suffix { value, ignore_case }),
        (text(), any::<bool>()).prop_map(|(value, ignore_case)| StringMatch::Contains { value, ignore_case }),
        regex().prop_map(StringMatch::Regex),
    ]
    .boxed()
}

fn header_match() -> BoxedStrategy<HeaderMatch> {
    let name = prop_oneof![
        "[a-z][a-z0-9-]{0,8}",
        select(vec![":method", ":authority", ":path"]).prop_map(String::from)
    ];
    let name = name.prop_map(|name| if name == "host" { ":authority".into() } else { name });
    let test = prop_oneof![
        any::<bool>().prop_map(HeaderTest::Present),
        string_match().prop_map(HeaderTest::Value),
        (any::<i64>(), any::<i64>()).prop_map(|(start, end)| HeaderTest::Range { start, end }),
    ];
    (name, test, any::<bool>(), any::<bool>())
        .prop_map(|(name, test, invert, missing_is_empty)| HeaderMatch {
            name,
            test,
            invert,
            missing_is_empty,
        })
        .boxed()
}

fn http2() -> BoxedStrategy<Http2> {
    (of(1..=0x7fff_ffff_u32), of(65_535..=0x7fff_ffff_u32), of(65_535..=0x7fff_ffff_u32))
        .prop_map(|(streams, stream_window, connection_window)| Http2 {
            streams,
            stream_window,
            connection_window,
        })
        .boxed()
}
