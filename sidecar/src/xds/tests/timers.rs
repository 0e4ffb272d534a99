//! What time does, with a clock of the test's own; and what is let go.

use std::time::Instant;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message as _;
use tokio::sync::mpsc::{Receiver, channel};

use super::*;
use crate::dns::{Resolver, Watched};
use crate::xds::cache::Knowledge;
use crate::xds::engine::Engine;
use crate::xds::interest::IDLE;
use crate::xds::stream::Event;

/// An engine on an open stream.
struct Bench {
    engine: Engine,
    names: Watched,
    handle: Handle,
    requests: Receiver<DeltaDiscoveryRequest>,
    now: Instant,
}

impl Bench {
    fn new(mesh: &Mesh) -> Self {
        let mut config = mesh.config(([127, 0, 0, 1], 1).into());
        config.state_dir = None;
        let (control, handle) = mesh.sidecar(config);
        let (sender, requests) = channel(1024);
        let mut engine = control.engine;
        let mut names = Watched::new(Resolver::new(None).expect("a resolver"));
        let now = Instant::now();
        engine.start(&mut names, now);
        engine.event(Event::Opened(sender));
        let mut bench = Self { engine, names, handle, requests, now };
        bench.flush();
        bench
    }

    /// Acts, and has all workers serve from what comes of it.
    fn flush(&mut self) {
        self.engine.flush(&mut self.names, self.now);
        while let Some(generation) = self.engine.awaited_generation() {
            self.engine.acknowledge(generation);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.engine.timers(self.now);
        self.flush();
    }

    fn demand(&mut self, name: &str) {
        self.engine.demand(name.into(), self.now);
        self.flush();
    }

    /// Takes a response and returns all requests that it leads to.
    fn respond(&mut self, resources: &[Resource]) -> Vec<DeltaDiscoveryRequest> {
        let response = DeltaDiscoveryResponse {
            type_url: resources[0].type_url().into(),
            resources: resources.iter().map(wire).collect(),
            nonce: "n".into(),
            ..Default::default()
        };
        self.engine.event(Event::Response(Box::new(response)));
        self.flush();
        self.sent()
    }

    fn sent(&mut self) -> Vec<DeltaDiscoveryRequest> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    fn serve_stock(&mut self) {
        self.demand(STOCK);
        for resource in [stock_listener(), stock_routes(), stock_cluster(), stock_endpoints(&[[10, 1, 0, 1]])]
        {
            self.respond(&[resource]);
        }
        assert!(self.handle.snapshots.borrow().outbound.contains_key(STOCK));
    }
}

#[tokio::test]
async fn a_server_that_reads_no_answer_loses_the_stream_before_they_pile_up() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.serve_stock();
    let say = |bench: &mut Bench| {
        let response =
            DeltaDiscoveryResponse { type_url: Kind::Cluster.type_url().into(), ..Default::default() };
        bench.engine.event(Event::Response(Box::new(response)));
        bench.flush();
    };
    for _ in 0..1024 {
        say(&mut bench);
    }
    assert!(bench.engine.requests.is_some());
    say(&mut bench);
    assert!(bench.engine.requests.is_none());
    assert!(bench.handle.snapshots.borrow().outbound.contains_key(STOCK), "what is in force stays");
}

#[tokio::test]
async fn endpoints_that_do_not_come_in_time_hold_their_listener_up_no_longer() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.demand(STOCK);
    for resource in [stock_listener(), stock_routes(), stock_cluster()] {
        bench.respond(&[resource]);
    }
    bench.pass(Duration::from_secs(14));
    assert!(bench.handle.snapshots.borrow().outbound.is_empty());
    bench.pass(Duration::from_secs(2));
    assert_eq!(endpoints_of(&bench.handle.snapshots.borrow(), STOCK), Some(0));
    // They come after all.
    bench.respond(&[stock_endpoints(&[[10, 1, 0, 1]])]);
    assert_eq!(endpoints_of(&bench.handle.snapshots.borrow(), STOCK), Some(1));
}

#[tokio::test]
async fn a_listener_whose_routes_do_not_come_stays_out_and_is_not_said_to_be_absent() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.demand(STOCK);
    bench.respond(&[stock_listener()]);
    bench.pass(Duration::from_secs(16));
    let now = bench.handle.snapshots.borrow().clone();
    assert!(now.outbound.is_empty() && now.absent.is_empty());
    assert_eq!(bench.engine.cache.knowledge(Kind::Route, STOCK_CLUSTER), Knowledge::Unavailable);
}

#[tokio::test]
async fn an_idle_listener_is_let_go_with_all_that_only_it_needed() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.serve_stock();
    bench.sent();
    let listener = Arc::clone(&bench.handle.snapshots.borrow().outbound[STOCK]);
    for _ in 0..3 {
        bench.pass(IDLE / 2);
        listener.last_use.touch(bench.now);
    }
    assert!(bench.sent().is_empty(), "it is in use");
    bench.pass(IDLE + Duration::from_secs(1));
    assert!(bench.handle.snapshots.borrow().outbound.is_empty());
    let dropped: Vec<_> =
        bench.sent().into_iter().map(|request| request.resource_names_unsubscribe).collect();
    assert_eq!(dropped, [[STOCK], [STOCK_CLUSTER], [STOCK_CLUSTER], [STOCK_CLUSTER]]);

    // A response that was under way is acknowledged and forgotten.
    let answers = bench.respond(&[stock_cluster()]);
    assert_eq!(answers.len(), 1);
    assert!(answers[0].response_nonce == "n" && answers[0].error_detail.is_none());
    assert!(bench.handle.snapshots.borrow().clusters.keys().all(|name| &**name == "inbound|8080||"));

    // It is asked for anew when traffic comes back.
    bench.demand(STOCK);
    assert_eq!(bench.sent()[0].resource_names_subscribe, [STOCK]);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_all_workers_serve_from_it() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.demand(STOCK);
    bench.sent();
    let response = DeltaDiscoveryResponse {
        type_url: stock_listener().type_url().into(),
        resources: vec![wire(&stock_listener())],
        nonce: "n".into(),
        ..Default::default()
    };
    bench.engine.event(Event::Response(Box::new(response)));
    bench.engine.flush(&mut bench.names, bench.now);
    let generation = bench.handle.snapshots.borrow().generation;
    assert_eq!(bench.engine.awaited_generation(), Some(generation));
    let answers =
        |bench: &mut Bench| bench.sent().iter().filter(|request| request.response_nonce == "n").count();
    bench.engine.acknowledge(generation - 1);
    assert_eq!(answers(&mut bench), 0);
    bench.engine.acknowledge(generation);
    assert_eq!((answers(&mut bench), bench.engine.awaited_generation()), (1, None));
}

#[tokio::test]
async fn demands_that_come_together_are_one_request() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.sent();
    for name in ["b:80", "a:80", "b:80"] {
        bench.engine.demand(name.into(), bench.now);
    }
    bench.flush();
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].resource_names_subscribe, ["a:80", "b:80"]);
}

#[tokio::test]
async fn a_new_stream_starts_the_timers_anew() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.demand(STOCK);
    bench.pass(Duration::from_secs(10));
    bench.engine.event(Event::Closed("cut".into()));
    bench.flush();
    bench.pass(Duration::from_secs(30));
    assert_eq!(bench.engine.cache.knowledge(Kind::Listener, STOCK), Knowledge::Awaited);
    let (sender, requests) = channel(1024);
    bench.requests = requests;
    bench.engine.event(Event::Opened(sender));
    bench.flush();
    assert!(bench.sent()[0].node.is_some(), "a new stream does not know us");
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.engine.cache.knowledge(Kind::Listener, STOCK), Knowledge::Awaited);
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.engine.cache.knowledge(Kind::Listener, STOCK), Knowledge::Unavailable);
}

#[tokio::test]
async fn damaged_responses_never_panic_and_each_is_answered() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.serve_stock();
    let mut random = fastrand::Rng::with_seed(7);
    let resources = shop();
    for round in 0..2000 {
        let (resource, _) = &resources[round % resources.len()];
        let response = DeltaDiscoveryResponse {
            type_url: resource.type_url().into(),
            resources: vec![wire(resource)],
            nonce: "n".into(),
            ..Default::default()
        };
        let mut bytes = response.encode_to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let Ok(damaged) = DeltaDiscoveryResponse::decode(bytes.as_slice()) else { continue };
        bench.sent();
        let (type_url, nonce) = (damaged.type_url.clone(), damaged.nonce.clone());
        bench.engine.event(Event::Response(Box::new(damaged)));
        bench.flush();
        let is_answer = |request: &DeltaDiscoveryRequest| {
            request.type_url == type_url
                && request.response_nonce == nonce
                && request.resource_names_subscribe.is_empty()
                && request.resource_names_unsubscribe.is_empty()
        };
        assert_eq!(bench.sent().iter().filter(|request| is_answer(request)).count(), 1, "round {round}");
    }
}

#[tokio::test]
async fn limits_and_statistics_outlive_what_changes_around_them() {
    let mesh = Mesh::new();
    let mut bench = Bench::new(&mesh);
    bench.serve_stock();
    let before = bench.handle.snapshots.borrow().clone();
    bench.respond(&[stock_endpoints(&[[10, 1, 0, 1], [10, 1, 0, 2]])]);
    let after = bench.handle.snapshots.borrow().clone();
    assert!(after.generation > before.generation);
    let id = |snapshot: &Snapshot| snapshot.clusters[STOCK_CLUSTER].endpoints.iter().map(|e| e.id).min();
    assert_eq!(id(&before), id(&after), "the endpoint that stayed is another");
    assert!(Arc::ptr_eq(&before.outbound[STOCK].last_use, &after.outbound[STOCK].last_use));
}
