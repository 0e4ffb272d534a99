//! How much of the traffic is in Jaeger is what the TelemetryPolicy says, also while it changes.

use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, wait_for};

use crate::jaeger::{Caller, Shown};

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn as_much_is_traced_as_the_policy_says() {
    let shown = Shown::start().await;
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let _server =
        mesh.workload(Workload::new("echo").app(app.address).protocol("http").otlp(shown.otlp())).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80").otlp(shown.otlp())).await;
    let get = async |path: String, headers: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo.shop\r\n{headers}connection: close\r\n\r\n");
        assert_eq!(exchange(client.ports["echo.shop:80"], request.as_bytes()).await.status(), 200);
    };
    // The paths that begin so and of which there are traces.
    let traced = async |prefix: &str| {
        let all = shown.traces("client").await;
        let paths = all.values().filter_map(|trace| Some(trace.spans.first()?.tag("url.path").to_owned()));
        paths.filter(|path| path.starts_with(prefix)).count()
    };
    let policy = async |name: &str, tracing: &str| {
        mesh.manifest(
            "policy.yaml",
            &format!(
                "apiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
                 spec: {{targetRefs: [{{kind: Service, name: echo}}], tracing: {tracing}}}\n"
            ),
        );
        mesh.knows("TelemetryPolicy", name).await;
    };
    const MANY: usize = 200;

    policy("all", "{samplingRate: {numerator: 100}}").await;
    let begun = || async {
        get("/begin".into(), "").await;
        if traced("/begin").await > 0 { Ok(()) } else { Err("nothing is traced") }.map_err(str::to_owned)
    };
    wait_for(LIMIT, begun).await.unwrap_or_else(|error| panic!("{error}"));
    for index in 0..MANY {
        get(format!("/all/{index}"), "").await;
    }
    let every = || async {
        let found = traced("/all/").await;
        if found == MANY { Ok(()) } else { Err(format!("{found} of {MANY}")) }
    };
    wait_for(LIMIT, every).await.unwrap_or_else(|error| panic!("{error}"));

    // A caller's decision holds, whatever the rate.
    policy("none", "{samplingRate: {numerator: 0}}").await;
    let quiet = async |round: u32| {
        let prefix = format!("/none/{round}/");
        for index in 0..MANY {
            get(format!("{prefix}{index}"), "").await;
        }
        // Spans go out in their order: once this one is there, so is all that was before.
        let caller = Caller::new();
        get("/marked".into(), &caller.traceparent()).await;
        shown.report(&caller).await;
        shown.whole(&caller, 4).await;
        traced(&prefix).await
    };
    let mut round = 0;
    while quiet(round).await > 0 {
        round += 1;
        assert!(round < 20, "traced all the same");
    }

    policy("some", "{samplingRate: {numerator: 1, denominator: 2}}").await;
    let half = || async {
        get("/some".into(), "").await;
        if traced("/some").await > 0 { Ok(()) } else { Err("nothing is traced".to_owned()) }
    };
    wait_for(LIMIT, half).await.unwrap_or_else(|error| panic!("{error}"));
    let found = quiet(100).await;
    // Six standard deviations.
    assert!((58..=142).contains(&found), "{found} of {MANY}");

    // And nothing at all, of nobody.
    policy("off", "{mode: Disabled}").await;
    let off = || async {
        let caller = Caller::new();
        get("/off".into(), &caller.traceparent()).await;
        shown.report(&caller).await;
        let seen = app.seen();
        let passed = seen.last().expect("it was asked").header("traceparent");
        // Who traces nothing passes the caller's context on as it is.
        let untouched = caller.traceparent().contains(passed);
        if untouched { Ok(caller) } else { Err(format!("still traced: {passed}")) }
    };
    let caller = wait_for(LIMIT, off).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shown.whole(&caller, 1).await.spans.len(), 1);
}
