//! Authorization rules from a seed.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::identity;
use tulle_tests::oracle::{CALLERS, Hello, Way, typed};

use super::{Generator, KEYS, VALUES};

/// Paths that can be read in one way only. What is made of others is told apart from what rules say of them.
const PATHS: [&str; 8] = ["/", "/a", "/a/b", "/A", "/ab", "/b", "/a/b/c", "/b/"];

impl Generator {
    /// One or a few filters, each with a set of policies, and the router.
    pub(crate) fn authorization(&mut self) -> Value {
        let count = self.0.usize(1..4);
        let mut filters: Vec<_> = (0..count).map(|index| self.filter(index)).collect();
        filters.push(json!({
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        }));
        json!({ "http_filters": filters })
    }

    /// A filter for connections.
    pub(crate) fn connection_rules(&mut self) -> Value {
        let mut config = json!({ "stat_prefix": "rbac", "rules": self.rules(false) });
        if self.one_in(4) {
            config["shadow_rules"] = self.rules(false);
        }
        let config = typed("envoy.extensions.filters.network.rbac.v3.RBAC", config);
        json!({ "name": "rbac", "typed_config": config })
    }

    /// Somebody's connection: over TLS, with a certificate or without, or in plaintext; maybe through a proxy that tells who it is.
    pub(crate) fn caller(&mut self) -> Way<'static> {
        let from = SocketAddr::from((self.pick(&[[127, 0, 0, 1], [127, 0, 0, 2]]), 0));
        let told = self.one_in(3).then(|| SocketAddr::from(([10, 1, 2, 3], 4000)));
        let tls = (!self.one_in(5)).then(|| {
            let caller = self.pick(&[None, Some(CALLERS[0]), Some(CALLERS[1]), Some(CALLERS[2])]);
            Hello::to(self.pick(&["a.test", "b.test"]), caller)
        });
        Way { from, told, tls }
    }

    /// A request whose path can be read in one way only.
    pub(crate) fn plain_request(&mut self, domain: &str) -> String {
        let method = self.pick(&["GET", "GET", "POST", "DELETE"]);
        let query = self.pick(&["", "", "?q=v", "?a"]);
        let mut request = format!("{method} {}{query} HTTP/1.1\r\nhost: {domain}\r\n", self.pick(&PATHS));
        for _ in 0..self.0.usize(0..3) {
            request += &format!("{}: {}\r\n", self.pick(&KEYS), self.pick(&VALUES));
        }
        let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
        request + body
    }

    fn filter(&mut self, index: usize) -> Value {
        let mut config = json!({});
        if !self.one_in(10) {
            config["rules"] = self.rules(true);
        }
        if self.one_in(4) {
            config["shadow_rules"] = self.rules(true);
        }
        let config = typed("envoy.extensions.filters.http.rbac.v3.RBAC", config);
        json!({ "name": format!("rbac{index}"), "typed_config": config })
    }

    /// Rules for requests, or else for connections.
    fn rules(&mut self, requests: bool) -> Value {
        let action = self.pick(&["ALLOW", "ALLOW", "DENY", "DENY", "LOG"]);
        let count = self.0.usize(0..4);
        let policies: serde_json::Map<_, _> =
            (0..count).map(|index| (format!("p{index}"), self.policy(requests))).collect();
        json!({ "action": action, "policies": policies })
    }

    fn policy(&mut self, requests: bool) -> Value {
        let permissions: Vec<_> = (0..self.0.usize(1..3)).map(|_| self.asked(2, true, requests)).collect();
        let principals: Vec<_> = (0..self.0.usize(1..3)).map(|_| self.asked(2, false, requests)).collect();
        json!({ "permissions": permissions, "principals": principals })
    }

    /// A condition on what is asked, or else on who asks, of this depth.
    fn asked(&mut self, depth: u8, what: bool, requests: bool) -> Value {
        let [and, or, not, inner] = match what {
            true => ["and_rules", "or_rules", "not_rule", "rules"],
            false => ["and_ids", "or_ids", "not_id", "ids"],
        };
        match self.0.u8(if depth == 0 { 4 } else { 0 }..10) {
            connective @ 0..=2 => {
                let all: Vec<_> =
                    (0..self.0.usize(1..4)).map(|_| self.asked(depth - 1, what, requests)).collect();
                json!({ (if connective == 0 { and } else { or }): { inner: all } })
            }
            3 => json!({ not: self.asked(depth - 1, what, requests) }),
            4 => json!({ "any": true }),
            5 | 6 if requests => json!({ "header": self.policy_header() }),
            7 | 8 if requests => {
                let path = self.pick(&PATHS);
                json!({ "url_path": { "path": self.string(path) } })
            }
            _ if what => self.place(),
            _ => self.peer(),
        }
    }

    fn policy_header(&mut self) -> Value {
        match self.0.u8(0..5) {
            0 => {
                let target = self.pick(&["/a", "/a?q=v", "/b"]);
                json!({ "name": ":path", "string_match": self.string(target) })
            }
            1 => {
                json!({ "name": ":authority", "string_match": { "exact": self.pick(&["h.test", "x.test"]) } })
            }
            _ => self.header_condition(),
        }
    }

    /// A condition on where the request arrived: at an address of this host, in plaintext or by the name `a.test`.
    fn place(&mut self) -> Value {
        match self.0.u8(0..4) {
            0 => json!({ "destination_port": 1 }),
            3 => {
                let (start, end) = self.pick(&[(0, 65_536), (1, 1024), (1024, 65_536), (1023, 1024)]);
                json!({ "destination_port_range": { "start": start, "end": end } })
            }
            1 => {
                let (address, length) = self.pick(&[("127.0.0.0", 8), ("10.0.0.0", 8), ("0.0.0.0", 0)]);
                json!({ "destination_ip": { "address_prefix": address, "prefix_len": length } })
            }
            _ => {
                let (how, value) = self.pick(&[("exact", ""), ("exact", "a.test"), ("suffix", "a.test")]);
                json!({ "requested_server_name": { how: value } })
            }
        }
    }

    /// A condition on the peer, who proves to be somebody or nothing.
    fn peer(&mut self) -> Value {
        match self.0.u8(0..6) {
            0 => json!({ "authenticated": {} }),
            1 => json!({ "authenticated": { "principal_name": { "prefix": "spiffe://" } } }),
            2 => {
                let caller = self.pick(&CALLERS);
                json!({ "authenticated": { "principal_name": self.string(&identity(caller)) } })
            }
            3 => {
                let regex = self.pick(&[
                    "spiffe://[^/]+/ns/shop/sa/web",
                    ".*/sa/web(-2)?",
                    "spiffe://.*",
                    "web",
                    ".*",
                ]);
                json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": regex } } } })
            }
            _ => {
                let how = self.pick(&["direct_remote_ip", "remote_ip", "source_ip"]);
                let (address, length) = self.pick(&[("127.0.0.1", 32), ("127.0.0.0", 8), ("10.0.0.0", 8)]);
                json!({ how: { "address_prefix": address, "prefix_len": length } })
            }
        }
    }
}
