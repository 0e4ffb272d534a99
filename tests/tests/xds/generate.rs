//! Routes and requests from a seed.
//!
//! The alphabets are small, so that a request often meets a condition, and often just misses it.

mod chains;
mod rules;

use serde_json::{Value, json};

/// Draws routes and requests.
pub(crate) struct Generator(fastrand::Rng);

/// The seed of this run, and how many virtual hosts it makes of `usual`.
pub(crate) fn seed(usual: usize) -> (u64, usize) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seed = number("TULLE_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let cases = number("TULLE_CASES").and_then(|cases| usize::try_from(cases).ok()).unwrap_or(usual);
    println!("TULLE_SEED={seed}");
    (seed, cases)
}

const SEGMENTS: [&str; 10] = ["a", "A", "a", "ab", "b", "c.d", "e-1", "%41", "..", ""];
const VALUES: [&str; 8] = ["v", "V", "vw", "1", "17", "-3", "v,1", ""];
const KEYS: [&str; 3] = ["x-k", "x-l", "x-m"];
const QUERIES: [&str; 3] = ["q", "r", "Q"];

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A virtual host of its own domain.
    pub(crate) fn host(&mut self, domain: &str) -> Value {
        let count = self.0.usize(1..6);
        let mut routes: Vec<_> = (0..count).map(|index| self.route(index)).collect();
        if !self.one_in(3) {
            let last = self.pick(&["a", "b", "c"]);
            routes.push(json!({ "name": "last", "match": { "prefix": "/" }, "route": { "cluster": last } }));
        }
        let mut host = json!({ "name": domain, "domains": [domain], "routes": routes });
        self.mutations(&mut host, 4);
        host
    }

    /// A request for a domain, as bytes.
    pub(crate) fn request(&mut self, domain: &str) -> String {
        let method = self.pick(&["GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS"]);
        let mut target = self.path(0);
        if self.one_in(2) {
            target += "?";
            let count = self.0.usize(1..3);
            let pairs: Vec<_> = (0..count).map(|_| self.pair()).collect();
            target += &pairs.join("&");
        }
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {domain}\r\n");
        for _ in 0..self.0.usize(0..3) {
            let (key, value) = (self.pick(&KEYS), self.pick(&VALUES));
            request += &format!("{key}: {value}\r\n");
        }
        if method == "POST" {
            request += "content-length: 4\r\n\r\nbody";
        } else {
            request += "\r\n";
        }
        request
    }

    /// Something to hash.
    pub(crate) fn key(&mut self) -> String {
        (0..self.0.usize(1..12)).map(|_| self.0.alphanumeric()).collect()
    }

    fn route(&mut self, index: usize) -> Value {
        let mut route = json!({ "name": format!("r{index}"), "match": self.condition() });
        let (field, action) = match self.0.u8(0..8) {
            0 => ("redirect", self.redirect(&route["match"])),
            1 => ("direct_response", self.direct_response()),
            _ => ("route", self.forward(&route["match"])),
        };
        route[field] = action;
        self.mutations(&mut route, 3);
        route
    }

    fn condition(&mut self) -> Value {
        let mut condition = match self.0.u8(0..8) {
            0 => json!({ "path": self.path(1) }),
            1 => json!({ "safe_regex": { "regex": self.regex() } }),
            2 => json!({ "path_separated_prefix": format!("/{}", self.pick(&SEGMENTS[..7])) }),
            3 => json!({ "prefix": format!("{}x", self.path(1)) }),
            _ => json!({ "prefix": self.path(0) }),
        };
        if self.one_in(4) {
            condition["case_sensitive"] = json!(false);
        }
        if self.one_in(3) {
            condition["headers"] = json!([self.header_condition()]);
        }
        if self.one_in(4) {
            condition["query_parameters"] = json!([self.query_condition()]);
        }
        condition
    }

    fn header_condition(&mut self) -> Value {
        let name = if self.one_in(5) { ":method" } else { self.pick(&KEYS) };
        let value = if name == ":method" { "GET" } else { self.pick(&VALUES) };
        let mut condition = match self.0.u8(0..4) {
            0 => json!({ "present_match": self.one_in(2) }),
            1 => json!({ "range_match": { "start": -3, "end": 17 } }),
            _ => json!({ "string_match": self.string(value) }),
        };
        condition["name"] = json!(name);
        if self.one_in(4) {
            condition["invert_match"] = json!(true);
        }
        if self.one_in(5) {
            condition["treat_missing_header_as_empty"] = json!(true);
        }
        condition
    }

    fn query_condition(&mut self) -> Value {
        let name = self.pick(&QUERIES);
        if self.one_in(3) {
            return json!({ "name": name, "present_match": true });
        }
        let value = self.pick(&VALUES);
        json!({ "name": name, "string_match": self.string(value) })
    }

    fn string(&mut self, value: &str) -> Value {
        let ignore_case = self.one_in(3);
        match self.0.u8(0..5) {
            // Of these only an exact value may be empty.
            _ if value.is_empty() => json!({ "exact": value }),
            0 => json!({ "prefix": value, "ignore_case": ignore_case }),
            1 => json!({ "suffix": value, "ignore_case": ignore_case }),
            2 => json!({ "contains": value, "ignore_case": ignore_case }),
            3 => json!({ "safe_regex": { "regex": "[vV].*|1+" } }),
            _ => json!({ "exact": value, "ignore_case": ignore_case }),
        }
    }

    fn forward(&mut self, condition: &Value) -> Value {
        let mut action = json!({ "cluster": self.pick(&["a", "b", "c"]) });
        let can_rewrite = can_replace(condition);
        match self.0.u8(0..6) {
            0 if can_rewrite => action["prefix_rewrite"] = json!(self.replacement(condition)),
            1 => {
                let rewrites =
                    [("/a", "/z"), ("^/([^/]*)/(.*)$", "/\\2/\\1"), ("[ab]+", "x\\0"), ("(?i)A", "\\\\")];
                let (pattern, substitution) = self.pick(&rewrites);
                action["regex_rewrite"] =
                    json!({ "pattern": { "regex": pattern }, "substitution": substitution });
            }
            _ => {}
        }
        if self.one_in(5) {
            action["host_rewrite_literal"] = json!("other.test");
            action["append_x_forwarded_host"] = json!(self.one_in(2));
        }
        action
    }

    /// What takes the place of a prefix. Where one of both ends with a slash and the other does not, Envoy joins text and
    /// the sidecar keeps one slash, which is a case of its own.
    fn replacement(&mut self, condition: &Value) -> &'static str {
        let prefix = condition["prefix"].as_str().unwrap_or_default();
        match prefix.ends_with('/') {
            true => self.pick(&["/", "/new/"]),
            false => self.pick(&["/new", "/new/er"]),
        }
    }

    fn redirect(&mut self, condition: &Value) -> Value {
        let mut redirect = json!({});
        match self.0.u8(0..4) {
            0 => redirect["path_redirect"] = json!(self.pick(&["/there", "/there?x=y"])),
            1 if can_replace(condition) => {
                redirect["prefix_rewrite"] = json!(self.replacement(condition));
            }
            _ => {}
        }
        match self.0.u8(0..3) {
            0 => redirect["https_redirect"] = json!(true),
            1 => redirect["scheme_redirect"] = json!("https"),
            _ => {}
        }
        if self.one_in(2) {
            redirect["host_redirect"] = json!("elsewhere.test");
        }
        if self.one_in(3) {
            redirect["port_redirect"] = json!(self.pick(&[80, 443, 8443]));
        }
        if self.one_in(2) {
            let code = self.pick(&["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"]);
            redirect["response_code"] = json!(code);
        }
        if self.one_in(3) {
            redirect["strip_query"] = json!(true);
        }
        redirect
    }

    fn direct_response(&mut self) -> Value {
        let status = self.pick(&[200, 204, 404, 418, 503]);
        let mut response = json!({ "status": status });
        // Envoy sends a body even where a status can have none.
        if status != 204 && self.one_in(2) {
            response["body"] = json!({ "inline_string": "said by the proxy" });
        }
        response
    }

    /// Header operations, on one of `in` routes.
    fn mutations(&mut self, of: &mut Value, one_in: u8) {
        for field in ["request_headers_to_add", "response_headers_to_add"] {
            if self.one_in(one_in) {
                let actions = [
                    "APPEND_IF_EXISTS_OR_ADD",
                    "ADD_IF_ABSENT",
                    "OVERWRITE_IF_EXISTS_OR_ADD",
                    "OVERWRITE_IF_EXISTS",
                ];
                let (key, value) = (self.pick(&KEYS), self.pick(&VALUES));
                let action = self.pick(&actions);
                of[field] = json!([{ "header": { "key": key, "value": value }, "append_action": action }]);
            }
        }
        for field in ["request_headers_to_remove", "response_headers_to_remove"] {
            if self.one_in(one_in * 2) {
                of[field] = json!([self.pick(&["x-k", "x-l", "x-cluster"])]);
            }
        }
    }

    /// A path of at least so many segments.
    fn path(&mut self, least: usize) -> String {
        let count = self.0.usize(least..4);
        let segments: Vec<_> = (0..count).map(|_| self.pick(&SEGMENTS)).collect();
        let end = if self.one_in(4) && count > 0 { "/" } else { "" };
        format!("/{}{end}", segments.join("/"))
    }

    fn pair(&mut self) -> String {
        let (name, value) = (self.pick(&QUERIES), self.pick(&VALUES));
        if self.one_in(5) { name.into() } else { format!("{name}={value}") }
    }

    fn regex(&mut self) -> &'static str {
        self.pick(&["/a.*", "/[^/]+", "/(a|b)/.*", ".*b", "/", "/A{1,2}b?", "(?i)/ab/?.*"])
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())]
    }

    fn one_in(&mut self, count: u8) -> bool {
        self.0.u8(..count) == 0
    }
}

/// Whether a condition has a prefix to replace. Of several slashes at its end the sidecar takes only one for the boundary.
fn can_replace(condition: &Value) -> bool {
    let prefix = condition["prefix"].as_str().unwrap_or_default();
    condition.get("safe_regex").is_none() && !prefix.ends_with("//")
}
