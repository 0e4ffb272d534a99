//! Envoy as the oracle: the same resources for it and for a sidecar, the same bytes to both, one scripted upstream behind them.
//!
//! In: resources in the JSON form of their protobufs, requests as bytes, scripts. Out: what the client saw and what reached the
//! upstream, for either. The resources come from a control plane of other making (`tests/python/ads.py`), which shares no code
//! with ours.

mod ads;
mod door;
mod envoy;
mod http2;
mod outcome;
mod peers;
mod resources;
mod scripted;
mod valve;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tulle_cli::local::{Process, Sidecar, fetch};

use crate::{LIMIT, wait_for};
use ads::Ads;
pub use ads::{Answered, CALLERS};
use door::Door;
pub use door::{Hello, Way};
pub use http2::Http2;
pub use outcome::{Outcome, Received, Then};
pub use resources::{
    chain, cluster, endpoints, listener, manager, manager_of, merged, route_configuration, speaking_http2,
    typed,
};
pub use scripted::{Scripted, Scripts};
pub use valve::Valve;

/// The one listener; a sidecar knows it as a service.
const SERVICE: &str = "oracle.test:80";

/// Envoy and a sidecar under one control plane.
pub struct Oracle {
    /// What serves both.
    pub ads: Ads,
    /// The clusters' upstreams, by the clusters' names.
    pub upstreams: Vec<Scripted>,
    /// Where Envoy's administration is.
    pub envoy_admin: SocketAddr,
    /// Through which the sidecar reaches it.
    pub valve: Valve,
    /// The sidecar.
    pub sidecar: Sidecar,
    /// Headers that are compared though they mostly differ.
    pub compared: &'static [&'static str],
    sides: [Side; 2],
    /// Where they take peers.
    inbound: [Side; 2],
    /// How often what holds for peers was changed.
    changes: usize,
    scripts: Scripts,
    cases: AtomicUsize,
    _envoy: tokio::process::Child,
    folder: TempDir,
}

/// One of the two.
#[derive(Clone, Copy, Debug)]
struct Side {
    name: &'static str,
    address: SocketAddr,
}

impl Oracle {
    /// Starts all of it with clusters `a`, `b` and `c` of one upstream each, and no route.
    pub async fn start() -> Self {
        let folder = crate::test_folder();
        let scripts = Scripts::default();
        let mut upstreams = Vec::new();
        for name in CLUSTERS {
            upstreams.push(Scripted::start(name, scripts.clone()).await);
        }
        let mut ads = Ads::start(folder.path()).await;
        // Both are told the same listener.
        let port = crate::Ground::default().free_port();
        let mut first = vec![listener(SERVICE, port, &manager("routes", json!({})))];
        for upstream in &upstreams {
            first.push(cluster(&upstream.name, json!({})));
            first.push(endpoints(&upstream.name, &[upstream.address]));
        }
        first.push(route_configuration("routes", &[all_clusters()]));
        ads.set(first).await;
        let (envoy, envoy_admin) = envoy::start(folder.path(), ads.plain).await;
        let valve = Valve::start(ads.tls).await;
        let inbound =
            ["envoy", "tulle"].map(|name| Side { name, address: crate::Ground::default().free_port() });
        let sidecar = ads.sidecar(folder.path(), valve.address, &[SERVICE], inbound[1].address).await;
        let sides =
            [Side { name: "envoy", address: port }, Side { name: "tulle", address: sidecar.ports[SERVICE] }];
        let oracle = Self {
            ads,
            upstreams,
            envoy_admin,
            valve,
            sidecar,
            compared: &[],
            sides,
            inbound,
            changes: 0,
            scripts,
            cases: AtomicUsize::new(0),
            _envoy: envoy,
            folder,
        };
        for side in sides {
            let serves = || oracle.serves(side);
            wait_for(LIMIT, serves).await.unwrap_or_else(|error| panic!("{}: {error}", side.name));
        }
        oracle
    }

    /// Where Envoy's one listener is.
    pub fn listener(&self) -> SocketAddr {
        self.sides[0].address
    }

    /// Puts virtual hosts in force with both: no other routes are there then.
    pub async fn routes(&mut self, hosts: &[Value]) {
        // Clusters that nothing refers to are let go, and routes to new ones wait for them.
        let hosts = [hosts, &[all_clusters()]].concat();
        self.push(vec![route_configuration("routes", &hosts)]).await;
    }

    /// The same, and waits until both answer `GET /` of a host with 200: routes wait for clusters that are new.
    pub async fn routes_to(&mut self, host: &Value) {
        self.routes(std::slice::from_ref(host)).await;
        let name = text(&host["domains"][0]);
        let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n");
        for side in self.sides {
            let served = || async {
                let outcome = self.one(side, request.as_bytes(), "ok").await;
                if outcome.received.status == 200 { Ok(()) } else { Err(outcome.to_string()) }
            };
            wait_for(LIMIT, served).await.unwrap_or_else(|error| panic!("{}: {error}", side.name));
        }
    }

    /// Puts a connection manager's settings in force with both, besides those that it has anyway.
    pub async fn manager(&mut self, settings: Value) {
        let port = self.sides[0].address;
        self.push(vec![listener(SERVICE, port, &manager("routes", settings))]).await;
    }

    /// The same, with filters that connections pass before they are looked at.
    pub async fn listening(&mut self, settings: Value, filters: Value) {
        let port = self.sides[0].address;
        let mut listener = listener(SERVICE, port, &manager("routes", settings));
        listener["listener_filters"] = filters;
        self.push(vec![listener]).await;
    }

    /// Puts resources in force with both, and waits until both have taken them.
    ///
    /// # Panics
    /// When one of the two rejects them.
    pub async fn push(&mut self, resources: Vec<Value>) {
        for answered in self.offer(resources).await {
            assert!(answered.error.is_empty(), "{}: {}", answered.agent, answered.error);
        }
    }

    /// Offers resources to both: what each answers, Envoy first. Returns once both have answered all that they were sent, and
    /// something of each type that changed; at once where nothing has.
    pub async fn offer(&mut self, resources: Vec<Value>) -> Vec<Answered> {
        let (command, changed) = self.ads.set(resources).await;
        let ads = &self.ads;
        let both = || async {
            let answered = ads.answered();
            let mut all = Vec::new();
            for agent in ["envoy", "tulle"] {
                let of = answered.iter().filter(|a| a.command >= command && a.agent.starts_with(agent));
                let of: Vec<_> = of.filter(|answered| changed.contains(&answered.kind)).cloned().collect();
                let whole = changed.iter().all(|kind| of.iter().any(|answer| answer.kind == *kind));
                let left = ads.unanswered(agent);
                if !whole || (left > 0 && !changed.is_empty()) {
                    return Err(format!("{agent} has not answered, {left} responses are open: {answered:?}"));
                }
                all.extend(of);
            }
            Ok(all)
        };
        wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What both have written on standard output so far.
    pub fn written(&self) -> [String; 2] {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        ["envoy.out", "sidecar.out"].map(read)
    }

    /// What the sidecar believes.
    pub async fn sidecar_config(&self) -> Value {
        let (_, text) = fetch(&format!("http://{}/config", self.sidecar.admin)).await.expect("it answers");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Sends one request to either, with an upstream that does as `script` says, attempt for attempt: what became of it,
    /// Envoy's first. `request` is all of it, but for a header that tells the upstream whose request it is.
    pub async fn both(&self, request: &[u8], script: &str) -> [Outcome; 2] {
        let [envoy, tulle] = self.sides;
        [self.one(envoy, request, script).await, self.one(tulle, request, script).await]
    }

    /// As [`Oracle::both`], where so many requests in all reach an upstream, some of them perhaps after the answer: what became of
    /// it, with them in the order of their clusters.
    pub async fn both_with_copies(&self, request: &[u8], script: &str, arrivals: usize) -> [Outcome; 2] {
        let one = |side: Side| async move {
            let case = self.case(side, script);
            let received = outcome::send(side.address, &marked(request, &case)).await;
            let arrived = || async {
                let seen = self.scripts.count(&case);
                if seen >= arrivals { Ok(()) } else { Err(format!("{case}: {seen} of {arrivals}")) }
            };
            wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{error}"));
            let mut upstream = self.scripts.take(&case);
            upstream.sort_by(|(one, _), (other, _)| one.cmp(other));
            Outcome { received, upstream }.normalised(side.address, &self.upstreams, self.compared)
        };
        let [envoy, tulle] = self.sides;
        [one(envoy).await, one(tulle).await]
    }

    /// As [`Oracle::both`], over HTTP/2.
    pub async fn both_over_http2(&self, request: &Request<Bytes>, script: &str) -> [Outcome; 2] {
        [self.one_over_http2(true, request, script).await, self.one_over_http2(false, request, script).await]
    }

    /// The same, to Envoy, or to the sidecar.
    pub async fn one_over_http2(&self, envoy: bool, request: &Request<Bytes>, script: &str) -> Outcome {
        let [theirs, ours] = self.sides;
        let side = if envoy { theirs } else { ours };
        let case = self.case(side, script);
        let received = http2::send(side.address, request.clone(), &case).await;
        let outcome = Outcome { received, upstream: self.scripts.take(&case) };
        outcome.normalised(side.address, &self.upstreams, self.compared)
    }

    /// Another upstream, which speaks HTTP/2 and knows scripts of its own.
    pub async fn http2_upstream(&self, name: &str) -> Http2 {
        Http2::start(name, self.scripts.clone()).await
    }

    /// Two upstreams at one port: at 127.0.0.1, and at ::1.
    pub async fn upstreams_of_both_families(&self, names: [&str; 2]) -> [Scripted; 2] {
        let port = crate::Ground::default().free_port().port();
        let start = |ip: &str, name| {
            let address = SocketAddr::new(ip.parse().expect("an address"), port);
            Scripted::start_at(address, name, self.scripts.clone())
        };
        let [v4, v6] = names;
        [start("127.0.0.1", v4).await, start("::1", v6).await]
    }

    /// Sends one request to Envoy, or to the sidecar.
    pub async fn one_of(&self, envoy: bool, request: &[u8], script: &str) -> Outcome {
        let [theirs, ours] = self.sides;
        self.one(if envoy { theirs } else { ours }, request, script).await
    }

    /// Sends the same request so often to either: all at the same time, but none before the `first` of them have reached an
    /// upstream. What became of each, in order of their statuses.
    pub async fn both_at_once(
        &self,
        (first, times): (usize, usize),
        request: &[u8],
        script: &str,
    ) -> [Vec<Outcome>; 2] {
        let [envoy, tulle] = self.sides.map(|side| async move {
            let cases: Vec<_> = (0..times).map(|_| self.case(side, script)).collect();
            let (before, after) = cases.split_at(first);
            let arrived = || async {
                let arrived = before.iter().all(|case| self.scripts.is_met(case));
                arrived.then_some(()).ok_or_else(|| "the first have not come to an upstream".to_owned())
            };
            let all = cases.iter().map(|case| async {
                if after.contains(case) {
                    wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{error}"));
                }
                self.exchange(side, request, case).await
            });
            let mut outcomes = futures_util::future::join_all(all).await;
            outcomes.sort_by_key(|outcome| (outcome.received.status, outcome.upstream.len()));
            outcomes
        });
        let (envoy, tulle) = tokio::join!(envoy, tulle);
        [envoy, tulle]
    }

    /// Sends requests one after the other over one connection to either, with an upstream that answers: what became of each.
    pub async fn both_in_turn(&self, requests: &[&[u8]]) -> [Vec<Outcome>; 2] {
        let one = |side: Side| async move {
            let cases: Vec<_> = requests.iter().map(|_| self.case(side, "ok")).collect();
            let marked: Vec<_> =
                requests.iter().zip(&cases).map(|(request, case)| marked(request, case)).collect();
            let received = outcome::send_in_turn(side.address, &marked).await;
            let outcomes = received.into_iter().zip(&cases).map(|(received, case)| {
                let upstream = self.scripts.take(case);
                Outcome { received, upstream }.normalised(side.address, &self.upstreams, self.compared)
            });
            outcomes.collect()
        };
        let [envoy, tulle] = self.sides;
        [one(envoy).await, one(tulle).await]
    }

    /// Sends the same request so often to either, each once the one before has reached an upstream: what became of them.
    pub async fn both_overlapping(&self, times: usize, request: &[u8], script: &str) -> [Vec<Outcome>; 2] {
        let [envoy, tulle] = self.sides.map(|side| async move {
            let cases: Vec<_> = (0..times).map(|_| self.case(side, script)).collect();
            let before = std::iter::once(None).chain(cases.iter().map(Some));
            let all = before.zip(&cases).map(|(before, case)| async move {
                let arrived = || async {
                    let arrived = before.is_none_or(|before| self.scripts.is_met(before));
                    arrived
                        .then_some(())
                        .ok_or_else(|| "the one before has not come to an upstream".to_owned())
                };
                wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{error}"));
                self.exchange(side, request, case).await
            });
            futures_util::future::join_all(all).await
        });
        let (envoy, tulle) = tokio::join!(envoy, tulle);
        [envoy, tulle]
    }

    /// Whether all clusters can be reached.
    async fn serves(&self, side: Side) -> Result<(), String> {
        connect(side.address).await?;
        for upstream in &self.upstreams {
            let request = format!("GET /{} HTTP/1.1\r\nhost: {ALL}\r\n\r\n", upstream.name);
            let outcome = self.one(side, request.as_bytes(), "ok").await;
            if outcome.received.status != 200 {
                return Err(outcome.to_string());
            }
        }
        Ok(())
    }

    async fn one(&self, side: Side, request: &[u8], script: &str) -> Outcome {
        self.exchange(side, request, &self.case(side, script)).await
    }

    /// The name of a new case.
    fn case(&self, side: Side, script: &str) -> String {
        let case = format!("{}-{}", side.name, self.cases.fetch_add(1, Ordering::Relaxed));
        self.scripts.put(&case, script);
        case
    }

    async fn exchange(&self, side: Side, request: &[u8], case: &str) -> Outcome {
        let received = outcome::send(side.address, &marked(request, case)).await;
        Outcome { received, upstream: self.scripts.take(case) }.normalised(
            side.address,
            &self.upstreams,
            self.compared,
        )
    }
}

/// The clusters, each with an upstream of its own.
const CLUSTERS: [&str; 3] = ["a", "b", "c"];

/// The domain of [`all_clusters`].
const ALL: &str = "all.test";

/// A virtual host with a route to each cluster, by its name.
pub fn all_clusters() -> Value {
    let route = |name: &str| json!({ "match": { "path": format!("/{name}") }, "route": { "cluster": name } });
    let routes = CLUSTERS.map(route);
    json!({ "name": ALL, "domains": [ALL], "routes": routes })
}

/// The request with the header by which its upstream knows its script, as the last of its head.
fn marked(request: &[u8], case: &str) -> Vec<u8> {
    // The PROXY protocol has empty lines in its signature.
    let proxied = request.windows(5).position(|five| five == b"QUIT\n").unwrap_or_default();
    let end = request[proxied..].windows(4).position(|four| four == b"\r\n\r\n");
    let (head, rest) = request.split_at(end.map_or(request.len(), |end| proxied + end + 2));
    [head, format!("{}: {case}\r\n", scripted::CASE).as_bytes(), rest].concat()
}

async fn connect(address: SocketAddr) -> Result<(), String> {
    tokio::net::TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A process of `tests/python` that says on its first line where it listens.
async fn python(script: &str, args: &[&str], folder: &std::path::Path) -> Process {
    let mut command = crate::python(script);
    command.args(args);
    Process::start(script, command, folder).await.unwrap_or_else(|error| panic!("{error}; run tests/setup"))
}
