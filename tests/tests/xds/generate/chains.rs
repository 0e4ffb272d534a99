//! Conditions of filter chains from a seed, and connections that may meet them.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::oracle::{Hello, Way};

use super::Generator;

const SERVER_NAMES: [&str; 6] = ["a.test", "*.test", "*.b.test", "x.b.test", "X.B.test", "a.org"];
const ASKED: [&str; 6] = ["a.test", "z.test", "y.b.test", "x.b.test", "x.y.b.test", "nobody.org"];
/// All offer what a chain can speak: which one is best makes no difference after a chain is chosen.
const OFFERS: [&[&str]; 5] =
    [&[], &["http/1.1"], &["h2", "http/1.1"], &["x", "http/1.1"], &["http/1.1", "x", "h2"]];
const PROTOCOLS: [&str; 5] = ["http/1.1", "http/1.0", "h2", "h2c", "x"];
/// Ranges in which some of [`SOURCES`] are, or none.
const RANGES: [(&str, u32); 6] = [
    ("127.0.0.0", 8),
    ("127.0.0.0", 30),
    ("127.0.0.2", 32),
    ("127.0.0.1", 32),
    ("10.0.0.0", 8),
    ("10.1.2.3", 32),
];
const SOURCES: [[u8; 4]; 4] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 1, 1]];
const TOLD: [[u8; 4]; 4] = [[10, 1, 2, 3], [10, 9, 9, 9], [127, 0, 0, 2], [127, 0, 0, 1]];

impl Generator {
    /// What a few chains say, for which connections they are, and whether each ends TLS. `ports` are those where connections
    /// arrive, `sources` some from which they come.
    pub(crate) fn chains(&mut self, ports: [u16; 2], sources: [u16; 2]) -> Vec<(String, Value, bool)> {
        let mut matches = Vec::new();
        for index in 0..self.0.usize(1..7) {
            let says = format!("chain {index}");
            let condition = self.chain_match(sources);
            let tls = self.ends_tls(&condition);
            let only = |port: u16| {
                let mut condition = condition.clone();
                condition["destination_port"] = json!(port);
                (says.clone(), condition, tls)
            };
            match self.0.u8(0..6) {
                // The same for either proxy.
                0 => matches.extend(ports.map(only)),
                1 => matches.push(only(1)),
                _ => matches.push((says, condition, tls)),
            }
        }
        matches
    }

    fn chain_match(&mut self, sources: [u16; 2]) -> Value {
        let mut condition = json!({});
        if self.one_in(5) {
            condition["prefix_ranges"] = self.ranges();
        }
        if self.one_in(2) {
            condition["server_names"] = json!(self.some(&SERVER_NAMES));
        }
        if self.one_in(2) {
            condition["transport_protocol"] = json!(self.pick(&["tls", "tls", "raw_buffer"]));
        }
        if self.one_in(4) {
            condition["application_protocols"] = json!(self.some(&PROTOCOLS));
        }
        if self.one_in(5) {
            condition["direct_source_prefix_ranges"] = self.ranges();
        }
        if self.one_in(5) {
            condition["source_type"] = json!(self.pick(&["SAME_IP_OR_LOOPBACK", "EXTERNAL", "ANY"]));
        }
        if self.one_in(2) {
            condition["source_prefix_ranges"] = self.ranges();
        }
        if self.one_in(5) {
            condition["source_ports"] = json!(self.some(&sources));
        }
        condition
    }

    /// Whether a chain ends TLS, mostly as its condition has it.
    fn ends_tls(&mut self, condition: &Value) -> bool {
        match condition["transport_protocol"].as_str() {
            Some("raw_buffer") => self.one_in(10),
            Some(_) => !self.one_in(10),
            None => !condition["server_names"].is_null() || self.one_in(2),
        }
    }

    /// A connection.
    pub(crate) fn way(&mut self, sources: [u16; 2], proxied: bool) -> Way<'static> {
        let port = |own: &mut Self| own.pick(&[0, 0, sources[0], sources[1]]);
        let from = SocketAddr::from((self.pick(&SOURCES), port(self)));
        let told = (proxied && !self.one_in(3)).then(|| {
            let port = port(self).max(9);
            SocketAddr::from((self.pick(&TOLD), port))
        });
        let tls = (!self.one_in(3)).then(|| Hello {
            server: (!self.one_in(5)).then(|| self.pick(&ASKED)),
            alpn: self.pick(&OFFERS),
            caller: None,
        });
        Way { from, told, tls }
    }

    fn ranges(&mut self) -> Value {
        let ranges = self.some(&RANGES).into_iter();
        ranges.map(|(prefix, length)| json!({ "address_prefix": prefix, "prefix_len": length })).collect()
    }

    /// One or two values, which are hardly ever the same.
    fn some<T: Copy + PartialEq>(&mut self, of: &[T]) -> Vec<T> {
        let first = self.pick(of);
        if self.one_in(2) {
            return vec![first];
        }
        let second = self.pick(of);
        if second == first && !self.one_in(10) { vec![first] } else { vec![first, second] }
    }
}
