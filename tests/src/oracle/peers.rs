//! Where Envoy and the sidecar take peers: filter chains put in force with both, and connections by many ways to them.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    ALL, Door, Hello, Oracle, Outcome, Side, Way, chain, connect, manager, outcome, resources, text,
};
use crate::{LIMIT, wait_for};

impl Oracle {
    /// Puts filter chains for peers in force with both, and waits until new connections take them.
    ///
    /// # Panics
    /// When one of the two rejects them.
    pub async fn peers(&mut self, chains: &[Value]) {
        let errors = self.offer_peers(chains, json!({})).await;
        assert!(errors.iter().all(String::is_empty), "{errors:?}");
    }

    /// Offers filter chains for peers, and more fields of their listener: why either rejects them, Envoy first. Where both take
    /// them, new connections do.
    pub async fn offer_peers(&mut self, chains: &[Value], more: Value) -> [String; 2] {
        self.changes += 1;
        if self.changes == 1 {
            self.ads.set(resources::secrets(self.folder.path())).await;
        }
        let sign = format!("change-{}.test", self.changes);
        let (way, matches) = sign_of(&sign, self.changes, &more["listener_filters"]);
        let tls = way.tls.is_some().then_some(false);
        let open: Vec<_> = resources::signs(chains, &matches)
            .into_iter()
            .map(|matches| chain(&sign, matches, tls, &manager("routes", json!({}))))
            .collect();
        let name = format!("tulle/inbound/{}", self.inbound[1].address);
        let chains = [chains, &open].concat();
        let listener = resources::inbound(&name, self.inbound[0].address, &chains, more);
        let answers = self.offer(vec![listener]).await;
        let errors = ["envoy", "tulle"].map(|agent| {
            let of = answers.iter().filter(|answered| answered.agent.starts_with(agent));
            of.map(|answered| answered.error.as_str()).collect::<String>()
        });
        if errors.iter().any(|error| !error.is_empty()) {
            return errors;
        }
        for side in self.inbound {
            let taken = || async {
                connect(side.address).await?;
                let request = format!("GET /a HTTP/1.1\r\nhost: {ALL}\r\n\r\n");
                let outcome = self.through(side, &way, request.as_bytes(), "ok").await;
                if outcome.received.status == 200 { Ok(()) } else { Err(outcome.to_string()) }
            };
            let taken = wait_for(LIMIT, taken).await;
            taken.unwrap_or_else(|error| panic!("{}: {error}\n{:#}", side.name, json!(chains)));
        }
        errors
    }

    /// Two ports from which nobody connects who is not told to.
    pub fn source_ports(&self) -> [u16; 2] {
        [0; 2].map(|_: u16| crate::Ground::default().free_port().port())
    }

    /// The ports where they take peers, Envoy's first.
    pub fn inbound_ports(&self) -> [u16; 2] {
        self.inbound.map(|side| side.address.port())
    }

    /// As [`Oracle::both`], over TLS to where they take peers: as one of [`super::CALLERS`], or as nobody, and by the name `server`.
    pub async fn both_as(
        &self,
        caller: Option<&str>,
        server: &str,
        request: &[u8],
        script: &str,
    ) -> [Outcome; 2] {
        let way = Way { tls: Some(Hello::to(server, caller)), ..Way::default() };
        self.both_by(&way, request, script).await
    }

    /// As [`Oracle::both`], by some way to where they take peers.
    pub async fn both_by(&self, way: &Way<'_>, request: &[u8], script: &str) -> [Outcome; 2] {
        let [envoy, tulle] = self.inbound;
        [self.through(envoy, way, request, script).await, self.through(tulle, way, request, script).await]
    }

    /// What both answer to bytes that come by some way to where they take peers: up to where it is `enough`, or to the end.
    pub async fn both_to_bytes(
        &self,
        way: &Way<'_>,
        bytes: &[u8],
        enough: impl Fn(&str) -> bool,
    ) -> [String; 2] {
        let mut answers = [String::new(), String::new()];
        for (side, answer) in self.inbound.into_iter().zip(&mut answers) {
            let door = Door::open(side.address, way, self.folder.path()).await;
            *answer = outcome::answer_to_bytes(door.address, bytes, &enough).await;
        }
        answers
    }

    async fn through(&self, side: Side, way: &Way<'_>, request: &[u8], script: &str) -> Outcome {
        let door = Door::open(side.address, way, self.folder.path()).await;
        self.one(Side { address: door.address, ..side }, request, script).await
    }
}

/// By which way, and under which conditions, a connection gets to a chain that is there for nothing but to show which change is in
/// force. A name is seen where TLS is looked for; elsewhere nothing is as specific as an address.
fn sign_of<'a>(name: &'a str, change: usize, filters: &Value) -> (Way<'a>, Value) {
    let looks_for = |what: &str| {
        let names = filters.as_array().into_iter().flatten().map(|filter| text(&filter["name"]));
        names.into_iter().any(|name| name.ends_with(what))
    };
    if filters.is_null() || looks_for("tls_inspector") {
        let way = Way { tls: Some(Hello::to(name, None)), ..Way::default() };
        return (way, json!({ "server_names": [name] }));
    }
    let [.., high, low] = change.to_be_bytes();
    let from = SocketAddr::from(([127, 1, high, low], 0));
    let range = json!([{ "address_prefix": from.ip().to_string(), "prefix_len": 32 }]);
    let protocols = if looks_for("http_inspector") { json!(["http/1.1"]) } else { json!([]) };
    let matches = json!({
        "transport_protocol": "raw_buffer",
        "application_protocols": protocols,
        "direct_source_prefix_ranges": range,
        "source_type": "EXTERNAL",
        "source_prefix_ranges": range,
    });
    (Way { from, ..Way::default() }, matches)
}
