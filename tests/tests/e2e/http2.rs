//! HTTP/2 frame by frame: resets, cancellation, GOAWAY, streams that outlive their neighbours, and the way between
//! versions.

use bytes::Bytes;
use tulle_tests::{H2App, H2Client, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, wait_for};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
const H2C: &str = "kubernetes.io/h2c";

#[tokio::test]
async fn clients_of_either_version_reach_an_http2_application() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, H2C).await;
    for _ in 0..3 {
        let answer = exchange(pair.port(), GET).await;
        assert!(answer.status() == 200 && answer.text.contains("two"), "{}", answer.text);
        assert!(answer.text.starts_with("HTTP/1.1"), "{}", answer.text);
    }
    let client = H2Client::connect(pair.port()).await;
    assert_eq!(client.get("/", &[]).await.expect("an answer"), (200, "two".into()));
    assert_eq!(app.count("/"), 4);
    assert!(app.count("connection") <= 2, "{:?}", app.events());
}

#[tokio::test]
async fn a_reset_reaches_the_client_and_its_neighbours_go_on() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, H2C).await;
    let client = H2Client::connect(pair.port()).await;
    let mut neighbour = client.call("/echo", &[]).await.expect("an answer");
    let mut reset = client.call("/reset", &[]).await.expect("an answer");
    assert_eq!(reset.next().await.expect("data").expect("data"), "half");
    reset.send.send_data(Bytes::new(), true).expect("it is open");
    let error = reset.next().await.expect("no end that looks like a good one").expect_err("a reset");
    assert!(error.is_reset(), "{error}");
    neighbour.send.send_data(Bytes::from_static(b"still here"), true).expect("it is open");
    assert_eq!(neighbour.next().await.expect("data").expect("data"), "still here");
    // An HTTP/1.1 client gets no end of the body that looks like a good one either.
    let post = b"POST /reset HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = exchange(pair.port(), post).await;
    assert!(answer.status() == 503 || !answer.text.contains("\r\n0\r\n"), "{}", answer.text);
    assert_eq!(client.get("/", &[]).await.expect("an answer").0, 200);
}

#[tokio::test]
async fn who_cancels_a_call_cancels_it_at_the_server() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, "grpc").await;
    let client = H2Client::connect(pair.port()).await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut neighbour = client.call("/echo", &grpc).await.expect("an answer");
    let mut call = client.call("/hold", &grpc).await.expect("an answer");
    assert_eq!(call.next().await.expect("data").expect("data"), "held");
    assert_eq!(app.count("cancelled"), 0);
    call.send.send_reset(h2::Reason::CANCEL);
    let cancelled =
        || async { if app.count("cancelled") == 1 { Ok(()) } else { Err(format!("{:?}", app.events())) } };
    wait_for(LIMIT, cancelled).await.unwrap_or_else(|error| panic!("{error}"));
    // So does a client that is gone altogether.
    let other = H2Client::connect(pair.port()).await;
    let mut call = other.call("/hold", &grpc).await.expect("an answer");
    assert_eq!(call.next().await.expect("data").expect("data"), "held");
    drop((call, other));
    let cancelled =
        || async { if app.count("cancelled") == 2 { Ok(()) } else { Err(format!("{:?}", app.events())) } };
    wait_for(LIMIT, cancelled).await.unwrap_or_else(|error| panic!("{error}"));
    neighbour.send.send_data(Bytes::from_static(b"still here"), true).expect("it is open");
    assert_eq!(neighbour.next().await.expect("data").expect("data"), "still here");
}

#[tokio::test]
async fn a_connection_that_says_goodbye_costs_no_request() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, H2C).await;
    let client = H2Client::connect(pair.port()).await;
    let mut open = client.call("/echo", &[]).await.expect("an answer");
    for _ in 0..20 {
        assert_eq!(client.get("/last", &[]).await.expect("an answer"), (200, "two".into()));
    }
    assert!(app.count("connection") > 1, "the application ended its connections");
    assert_eq!(app.count("/last"), 20, "each request was processed once");
    open.send.send_data(Bytes::from_static(b"still here"), true).expect("it is open");
    assert_eq!(open.next().await.expect("data").expect("data"), "still here");
}

#[tokio::test]
async fn grpc_methods_have_routes_of_their_own() {
    let (one, two) = (H2App::start("one").await, H2App::start("two").await);
    let mesh = TestMesh::start().await;
    let _one = mesh.workload(Workload::new("echo").app(one.address).protocol("grpc")).await;
    let _two = mesh.workload(Workload::new("two").app(two.address).protocol("grpc")).await;
    mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  \
             - matches:\n    - method: {{service: test.Echo, method: New}}\n    - method: {{service: test.Other}}\n    \
             - {{method: {{service: test.Echo}}, headers: [{{name: x-beta, value: \"1\"}}]}}\n    \
             backendRefs: [{{name: two, port: 80}}]\n  - backendRefs: [{{name: echo, port: 80}}]\n"
        ),
    );
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let client = H2Client::connect(client.ports["echo.shop:80"]).await;
    let call = async |path: &str, beta: bool| {
        let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
        headers.extend(beta.then_some(("x-beta", "1")));
        client.get(path, &headers).await.expect("an answer").1
    };
    let routed = || async {
        match call("/test.Echo/New", false).await.as_str() {
            "two" => Ok(()),
            other => Err(format!("not routed: {other}")),
        }
    };
    wait_for(LIMIT, routed).await.unwrap_or_else(|error| panic!("{error}"));
    for (path, beta, expected) in [
        ("/test.Echo/New", false, "two"),
        ("/test.Echo/Old", false, "one"),
        ("/test.Echo/Old", true, "two"),
        ("/test.Other/Any", false, "two"),
        ("/test.Echo/Newer", false, "one"),
    ] {
        assert_eq!(call(path, beta).await, expected, "{path}");
    }
}

#[tokio::test]
async fn grpc_calls_have_their_headers_changed() {
    let app = H2App::start("one").await;
    let mesh = TestMesh::start().await;
    let _echo = mesh.workload(Workload::new("echo").app(app.address).protocol("grpc")).await;
    let rule = |case: &str, changes: &str| {
        format!(
            "  - matches: [{{headers: [{{name: x-case, value: {case}}}]}}]\n    \
             filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{changes}}}}}]\n    \
             backendRefs: [{{name: echo, port: 80}}]\n"
        )
    };
    let rules = [
        rule("set", "set: [{name: x-a, value: of-the-route}]"),
        rule("add", "add: [{name: x-a, value: of-the-route}]"),
        rule("remove", "remove: [x-a]"),
        rule("all", "set: [{name: x-a, value: '1'}], add: [{name: x-b, value: '2'}], remove: [x-c, x-d]"),
    ];
    mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo, port: 80}}]\n  rules:\n{}",
            rules.concat()
        ),
    );
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let client = H2Client::connect(client.ports["echo.shop:80"]).await;
    let call = async |case: &str, own: &[(&str, &str)]| {
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-case", case)];
        let (_, text) = client.get("/test.Echo/Headers", &[&headers, own].concat()).await.expect("an answer");
        let changed = |line: &&str| ["x-a: ", "x-b: ", "x-c: "].iter().any(|name| line.starts_with(name));
        text.lines().filter(changed).map(str::to_owned).collect::<Vec<_>>()
    };
    let own = [("x-a", "own"), ("x-b", "own"), ("x-c", "own")];
    let routed = || async {
        match call("remove", &own).await.as_slice() {
            [b, c] if b == "x-b: own" && c == "x-c: own" => Ok(()),
            other => Err(format!("not routed: {other:?}")),
        }
    };
    wait_for(LIMIT, routed).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(call("set", &own[..1]).await, ["x-a: of-the-route"]);
    assert_eq!(call("set", &[]).await, ["x-a: of-the-route"]);
    assert_eq!(call("add", &own[..1]).await, ["x-a: own", "x-a: of-the-route"]);
    assert_eq!(call("add", &[]).await, ["x-a: of-the-route"]);
    assert_eq!(call("all", &own).await, ["x-a: 1", "x-b: own", "x-b: 2"]);
}

#[tokio::test]
async fn a_stream_outlives_the_beginning_of_its_sidecars_end() {
    let (one, two) = (H2App::start("one").await, H2App::start("two").await);
    let mesh = TestMesh::start().await;
    let mut instances = vec![
        mesh.workload(Workload::new("echo").app(one.address).protocol("grpc")).await,
        mesh.workload(Workload::new("echo-2").service("echo").app(two.address)).await,
    ];
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let client = H2Client::connect(client.ports["echo.shop:80"]).await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let both = || async {
        client.get("/", &grpc).await.map_err(|error| error.to_string())?;
        let known = one.count("/") > 0 && two.count("/") > 0;
        known.then_some(()).ok_or_else(|| "only one instance is known".to_owned())
    };
    wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"));
    let mut call = client.call("/echo", &grpc).await.expect("an answer");
    let (ending, other) = match call.head.1.as_str() {
        "one" => (instances.remove(0), &two),
        _ => (instances.remove(1), &one),
    };
    let mut ending = ending;
    ending.process.terminate();
    let unready = || async {
        match fetch(&format!("http://{}/ready", ending.health)).await {
            Ok((503, _)) => Ok(()),
            other => Err(format!("still ready: {other:?}")),
        }
    };
    wait_for(LIMIT, unready).await.unwrap_or_else(|error| panic!("{error}"));
    // The stream lives on, and all new ones are answered; once the sidecar says so, by the other instance.
    let moved = || async {
        let before = other.count("/");
        for _ in 0..10 {
            assert_eq!(client.get("/", &grpc).await.map_err(|error| error.to_string())?.0, 200);
        }
        if other.count("/") == before + 10 { Ok(()) } else { Err("new calls still go there".to_owned()) }
    };
    wait_for(LIMIT, moved).await.unwrap_or_else(|error| panic!("{error}"));
    for message in ["a", "b", "c"] {
        call.send.send_data(Bytes::from_static(message.as_bytes()), false).expect("it is open");
        assert_eq!(call.next().await.expect("data").expect("data"), message);
    }
    assert!(ending.process.is_running(), "a stream is open");
    call.send.send_data(Bytes::new(), true).expect("it is open");
    while let Some(data) = call.next().await {
        assert!(data.expect("no reset").is_empty(), "nothing more than a good end");
    }
    let status = ending.process.wait(LIMIT).await.expect("it ends");
    assert!(status.success(), "{status}");
}
