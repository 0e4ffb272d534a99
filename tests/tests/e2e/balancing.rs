//! Which endpoint a request goes to, and what an endpoint that fails costs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_cli::local::Sidecar;
use tulle_tests::{
    Answer, App, H2App, LIMIT, NAMESPACE, TestMesh, Workload, curl, exchange, output_of, read_head, wait_for,
};

/// Instances of `echo` and a client of theirs.
struct Fleet {
    mesh: TestMesh,
    client: Sidecar,
    _instances: Vec<Sidecar>,
}

impl Fleet {
    /// One instance per application, of which the client knows all.
    async fn start(apps: &[SocketAddr]) -> Self {
        let mesh = TestMesh::start().await;
        let mut instances = Vec::new();
        for (index, app) in apps.iter().enumerate() {
            let workload = match index {
                0 => Workload::new("echo").protocol("http"),
                _ => Workload::new(&format!("echo-{index}")).service("echo"),
            };
            instances.push(mesh.workload(workload.app(*app)).await);
        }
        let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
        let fleet = Self { mesh, client, _instances: instances };
        let mesh_ports: Vec<_> =
            fleet._instances.iter().map(|each| fleet.mesh.endpoint(each).to_string()).collect();
        fleet.config(|config| mesh_ports.iter().all(|port| config.contains(port))).await;
        fleet
    }

    /// Waits until the client's configuration is as it should be.
    async fn config(&self, right: impl Fn(&str) -> bool) {
        let url = format!("http://{}/config", self.client.admin);
        let check = || async {
            // Nothing is known before it is asked for.
            self.explain().await?;
            let (_, config) = tulle_tests::fetch(&url).await?;
            if right(&config) { Ok(()) } else { Err(format!("not yet: {config}")) }
        };
        wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn explain(&self) -> Result<(u16, String), String> {
        tulle_tests::fetch(&format!("http://{}/explain?host=echo.shop:80", self.client.admin)).await
    }

    /// Puts a BackendTrafficPolicy in force.
    async fn policy(&self, spec: &str, in_force: &str) {
        self.mesh.manifest(
            "policy.yaml",
            &format!(
                "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n{spec}\n"
            ),
        );
        self.config(|config| config.contains(in_force)).await;
    }

    async fn get(&self, headers: &str) -> Answer {
        let request = format!("GET / HTTP/1.1\r\nhost: echo.shop\r\n{headers}connection: close\r\n\r\n");
        exchange(self.client.ports["echo.shop:80"], request.as_bytes()).await
    }

    /// Sends a request, and does not wait for its answer.
    async fn ask(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.client.ports["echo.shop:80"]).await.expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n").await.expect("it reads");
        stream
    }

    /// Sends two requests, of which one is refused because the other waits already, and yields that other.
    async fn one_waits(&self) -> TcpStream {
        let (mut one, mut other) = (self.ask().await, self.ask().await);
        let (refused, waiting) = tokio::select! {
            head = read_head(&mut one) => (head, other),
            head = read_head(&mut other) => (head, one),
        };
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        let status = "proxy-status: tulle; error=connection_limit_reached";
        assert!(refused.contains(status) && refused.contains("maxPendingRequests=1"), "{refused}");
        assert_eq!(overflows(&self.client).await, 1.0);
        waiting
    }

    /// Sends so many requests, one after the other, all of which have to succeed.
    async fn get_all(&self, count: usize) {
        let one = "GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
        let last = "GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
        let request = one.repeat(count - 1) + last;
        let answer = exchange(self.client.ports["echo.shop:80"], request.as_bytes()).await;
        assert_eq!(answer.statuses(), vec![200; count]);
    }
}

async fn apps<const N: usize>() -> [App; N] {
    let mut apps = Vec::new();
    for name in ["a", "b", "c"].into_iter().take(N) {
        apps.push(App::fixed(200, name).await);
    }
    apps.try_into().unwrap_or_else(|_| panic!("as many as were asked for"))
}

fn body(answer: &Answer) -> &str {
    assert_eq!(answer.status(), 200, "{}", answer.text);
    answer.text.rsplit("\r\n\r\n").next().unwrap_or_default()
}

/// An application that takes requests and never answers.
async fn silent() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    (listener.local_addr().expect("it is bound"), listener)
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let apps = apps::<3>().await;
    let fleet = Fleet::start(&apps.each_ref().map(|app| app.address)).await;
    fleet.policy("  loadBalancer: {algorithm: RoundRobin}", "\"loadBalancer\":\"roundRobin\"").await;
    fleet.get_all(30).await;
    assert_eq!(apps.each_ref().map(|app| app.seen().len()), [10, 10, 10]);
}

#[tokio::test]
async fn random_spreads() {
    let apps = apps::<2>().await;
    let fleet = Fleet::start(&apps.each_ref().map(|app| app.address)).await;
    fleet.policy("  loadBalancer: {algorithm: Random}", "\"loadBalancer\":\"random\"").await;
    fleet.get_all(400).await;
    // Seven standard deviations around 200.
    let first = apps[0].seen().len();
    assert!((130..=270).contains(&first), "{first} of 400");
}

#[tokio::test]
async fn least_request_avoids_who_is_busy() {
    let [quick] = apps::<1>().await;
    let (address, listener) = silent().await;
    let fleet = Fleet::start(&[quick.address, address]).await;
    fleet.policy("  loadBalancer: {algorithm: LeastRequest}", "leastRequest").await;
    // One request stays with the silent one.
    let mut held;
    let taken = loop {
        held = TcpStream::connect(fleet.client.ports["echo.shop:80"]).await.expect("it listens");
        held.write_all(b"GET /held HTTP/1.1\r\nhost: echo.shop\r\n\r\n").await.expect("it reads");
        tokio::select! {
            taken = timeout(LIMIT, listener.accept()) => break taken.expect("in time").expect("a request"),
            _ = read_head(&mut held) => {}
        }
    };
    let before = quick.seen().len();
    fleet.get_all(20).await;
    assert_eq!(quick.seen().len() - before, 20);
    drop((held, taken));
}

#[tokio::test]
async fn equal_hashes_go_to_the_same_endpoint_and_stay_when_another_leaves() {
    let apps = apps::<3>().await;
    let fleet = Fleet::start(&apps.each_ref().map(|app| app.address)).await;
    fleet
        .policy(
            "  loadBalancer: {algorithm: ConsistentHash, consistentHash: {type: Header, header: {name: x-user}}}",
            "x-user",
        )
        .await;
    let users: Vec<String> = (0..120).map(|user| format!("x-user: u{user}\r\n")).collect();
    let mut homes = Vec::new();
    for user in &users {
        let home = body(&fleet.get(user).await).to_owned();
        for _ in 0..3 {
            assert_eq!(body(&fleet.get(user).await), home, "{user}");
        }
        homes.push(home);
    }
    for app in ["a", "b", "c"] {
        assert!(homes.iter().any(|home| home == app), "nobody is at {app}: {homes:?}");
    }
    fleet.mesh.remove_manifest("echo-2.yaml");
    let gone = fleet.mesh.endpoint(&fleet._instances[2]).to_string();
    fleet.config(|config| !config.contains(&gone)).await;
    let mut moved = 0;
    let mut at_others = 0;
    for (user, home) in users.iter().zip(&homes) {
        let answer = fleet.get(user).await;
        assert_ne!(body(&answer), "c");
        if home != "c" {
            at_others += 1;
            moved += usize::from(body(&answer) != home);
        }
    }
    // The points of a ring (Envoy's) are shared out anew among those that stay: a sixth moves, where a plain
    // remainder would move half.
    assert!(moved * 5 <= at_others * 2, "{moved} of {at_others} had to move");
}

#[tokio::test]
async fn a_session_stays_where_its_cookie_says() {
    let apps = apps::<3>().await;
    let fleet = Fleet::start(&apps.each_ref().map(|app| app.address)).await;
    fleet.policy("  sessionPersistence: {sessionName: basket, type: Cookie}", "basket").await;
    let mut homes = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let first = fleet.get("").await;
        let cookie = first.header("set-cookie");
        assert!(cookie.starts_with("basket="), "{}", first.text);
        let header = format!("cookie: {}\r\n", cookie.split(';').next().unwrap_or_default());
        for _ in 0..3 {
            let again = fleet.get(&header).await;
            assert_eq!(body(&again), body(&first), "{header}");
            assert_eq!(again.header("set-cookie"), "", "the session has its cookie");
        }
        homes.insert(body(&first).to_owned());
    }
    assert!(homes.len() > 1, "all sessions are at {homes:?}");
}

#[tokio::test]
async fn what_is_above_the_limit_of_requests_is_refused_at_once() {
    let (address, listener) = silent().await;
    let fleet = Fleet::start(&[address]).await;
    fleet.policy("  circuitBreaker: {maxConcurrentRequests: 1}", "\"maxRequests\":1").await;
    let (mut held, mut app) = held(&fleet, &listener).await;
    for _ in 0..3 {
        let refused = fleet.get("").await;
        assert_eq!(refused.status(), 503, "{}", refused.text);
        let status = refused.header("proxy-status");
        assert!(status.starts_with("tulle; error=connection_limit_reached"), "{status}");
    }
    // Once it is answered the slot is free again, and the next request comes on the same connection.
    app.write_all(EMPTY).await.expect("it reads");
    assert!(read_head(&mut held).await.starts_with("HTTP/1.1 200"));
    let next = tokio::spawn(async move {
        read_head(&mut app).await;
        app.write_all(EMPTY).await.expect("it reads");
        app
    });
    assert_eq!(fleet.get("").await.status(), 200);
    timeout(LIMIT, next).await.expect("in time").expect("it was asked");
}

const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Holds a request at the application, which `listener` is: the client's and the application's end of it.
async fn held(fleet: &Fleet, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let held = fleet.ask().await;
    let (mut app, _) = timeout(LIMIT, listener.accept()).await.expect("in time").expect("a request");
    read_head(&mut app).await;
    (held, app)
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_out_but_never_the_last() {
    let good = App::fixed(200, "good").await;
    let bad = App::fixed(503, "bad").await;
    let fleet = Fleet::start(&[good.address, bad.address]).await;
    fleet
        .policy(
            "  loadBalancer: {algorithm: RoundRobin}\n  outlierDetection: {consecutiveErrors: 3, baseEjectionTime: 60s}",
            "roundRobin",
        )
        .await;
    let ejected = || async {
        fleet.get("").await;
        if bad.seen().len() >= 3 { Ok(()) } else { Err("it was not asked often enough".to_owned()) }
    };
    wait_for(LIMIT, ejected).await.unwrap_or_else(|error| panic!("{error}"));
    fleet.get_all(40).await;
    assert_eq!(bad.seen().len(), 3, "it gets nothing more for a minute");

    fleet.mesh.remove_manifest("echo.yaml");
    fleet.mesh.manifest(
        "service.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\nspec:\n  \
             selector: {{app: echo}}\n  ports: [{{name: main, port: 80, targetPort: main, appProtocol: http}}]\n"
        ),
    );
    let gone = fleet.mesh.endpoint(&fleet._instances[0]).to_string();
    fleet.config(|config| !config.contains(&gone)).await;
    for _ in 0..10 {
        let answer = fleet.get("").await;
        assert!(answer.text.ends_with("bad"), "the last one is all there is: {}", answer.text);
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_elsewhere() {
    let [quick] = apps::<1>().await;
    let (address, _listener) = silent().await;
    let fleet = Fleet::start(&[quick.address, address]).await;
    // Long enough that on a busy machine, too, the quick one answers within it; requests wait for it at the same time.
    fleet
        .policy(
            "  loadBalancer: {algorithm: RoundRobin}\n  timeouts: {backendRequest: 5s, request: 60s}\n  \
             retry: {codes: [504], attempts: 2, backoff: 1ms}\n  retryConstraint: {budget: {percent: 100}}",
            // Of the route, which comes after its clusters.
            "\"perTryTimeout\":{\"secs\":5",
        )
        .await;
    let begun = Instant::now();
    for answer in join_all((0..6).map(|_| fleet.get(""))).await {
        assert_eq!(answer.status(), 200, "{}", answer.text);
    }
    assert!(begun.elapsed() >= Duration::from_secs(5), "none has asked the one that is silent");
    assert_eq!(quick.seen().len(), 6);
}

/// Clients that give up before anybody fails, and before the kernel misses the other end, show which endpoint is dead.
#[tokio::test]
async fn an_endpoint_that_clients_have_given_up_on_is_avoided() {
    let [quick] = apps::<1>().await;
    let (address, _listener) = silent().await;
    let fleet = Fleet::start(&[quick.address, address]).await;
    let given_up = async || {
        let mut stream = TcpStream::connect(fleet.client.ports["echo.shop:80"]).await.expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n").await.expect("it is read");
        timeout(Duration::from_millis(500), read_head(&mut stream)).await.is_err()
    };
    let mut asked = 0;
    while !given_up().await {
        asked += 1;
        assert!(asked < 100, "nothing goes to the one that is silent");
    }
    let idle = || async {
        let (_, config) = tulle_tests::fetch(&format!("http://{}/config", fleet.client.admin)).await?;
        if config.contains("\"inFlight\":1") { Err(config) } else { Ok(()) }
    };
    wait_for(LIMIT, idle).await.unwrap_or_else(|error| panic!("{error}"));
    fleet.get_all(50).await;
}

/// How many requests and connections the client's sidecar has refused by a limit.
async fn overflows(client: &Sidecar) -> f64 {
    let metrics = client.metrics().await.expect("it answers");
    metrics.sum("tulle_upstream_overflows_total", &[("cluster", "outbound|80||echo.shop.svc.cluster.local")])
}

#[tokio::test]
async fn who_would_need_one_connection_too_many_waits_for_one() {
    let (address, listener) = silent().await;
    let fleet = Fleet::start(&[address]).await;
    let limits = "  circuitBreaker: {maxConnections: 1, maxPendingRequests: 1}";
    fleet.policy(limits, "\"maxConnections\":1").await;
    let (mut held, mut app) = held(&fleet, &listener).await;
    let mut waiting = fleet.one_waits().await;
    app.write_all(EMPTY).await.expect("it reads");
    assert!(read_head(&mut held).await.starts_with("HTTP/1.1 200"));
    read_head(&mut app).await;
    app.write_all(EMPTY).await.expect("it reads");
    assert!(read_head(&mut waiting).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_would_have_to_wait_behind_too_many_is_refused_by_name() {
    let [app] = apps::<1>().await;
    let fleet = Fleet::start(&[app.address]).await;
    fleet
        .policy(
            "  circuitBreaker: {maxPendingRequests: 1}\n  connection: {connectTimeout: 20s}",
            "\"maxPendingRequests\":1",
        )
        .await;
    // It takes connections, and then does nothing: whoever needs a new one waits.
    fleet._instances[0].process.signal("STOP");
    let mut waiting = fleet.one_waits().await;
    fleet._instances[0].process.signal("CONT");
    assert!(read_head(&mut waiting).await.starts_with("HTTP/1.1 200"), "who waited is served");
    assert_eq!(fleet.get("").await.status(), 200);
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_noticed_on_idle_connections_and_costs_no_request() {
    let (one, two) = (H2App::start("one").await, H2App::start("two").await);
    let mesh = TestMesh::start().await;
    let first = mesh.workload(Workload::new("echo").app(one.address).protocol("kubernetes.io/h2c")).await;
    let second = mesh.workload(Workload::new("echo-1").service("echo").app(two.address)).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let fleet = Fleet { mesh, client, _instances: vec![first, second] };
    fleet
        .policy(
            "  loadBalancer: {algorithm: RoundRobin}\n  connection: {connectTimeout: 5s}",
            "\"loadBalancer\":\"roundRobin\"",
        )
        .await;
    let both = || async {
        fleet.get("").await;
        let known = one.count("/") > 0 && two.count("/") > 0;
        known.then_some(()).ok_or_else(|| "only one instance is known".to_owned())
    };
    wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"));
    let before = one.count("/");
    // The kernel still takes its bytes: only the missing answer to a ping tells that nobody is there.
    fleet._instances[1].process.signal("STOP");
    let calls = (0..4).map(|_| {
        let mut curl = curl();
        curl.args(["--max-time", "100", "--http2-prior-knowledge", "--write-out", "%{http_code}"]);
        curl.arg(format!("http://{}/", fleet.client.ports["echo.shop:80"]));
        tokio::spawn(output_of(curl))
    });
    for call in calls.collect::<Vec<_>>() {
        let output = call.await.expect("no panic");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "one200", "{output:?}");
    }
    assert_eq!(one.count("/") - before, 4);
}
