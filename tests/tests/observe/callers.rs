//! Callers who have a trace already find the mesh's spans in it, whichever headers they send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

use tulle_tests::{App, LIMIT, TestMesh, Workload, exchange, script};

use crate::jaeger::{Caller, Shown};

/// An application that asks the next one, and passes on those of its caller's headers that it knows.
async fn relay(known: &'static [&'static str], next: Arc<OnceLock<SocketAddr>>) -> App {
    let ask = move |request: &tulle_tests::Seen| {
        let headers: String = request
            .headers
            .iter()
            .filter(|(name, _)| known.iter().any(|known| name.eq_ignore_ascii_case(known)))
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let ask = format!("GET / HTTP/1.1\r\nhost: back.shop\r\n{headers}connection: close\r\n\r\n");
        let mut stream =
            TcpStream::connect(next.get().expect("it is set first")).expect("its sidecar listens");
        stream.set_read_timeout(Some(LIMIT)).expect("not zero");
        stream.write_all(ask.as_bytes()).expect("it is open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        script(if answer.starts_with("HTTP/1.1 200 ") { 200 } else { 500 }, "")
    };
    // What its worker thread had to do next goes to another: it may be what it waits for.
    App::start(move |request| tokio::task::block_in_place(|| ask(request))).await
}

// The relay waits for the application behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs Jaeger: tests/observe"]
async fn every_form_of_a_callers_trace_is_continued() {
    let shown = Shown::start().await;
    let mesh = TestMesh::start().await;
    let next = Arc::<OnceLock<SocketAddr>>::default();
    // It passes on what an old tracing library knows, and then what a new one does.
    let known: &[&str] =
        &["b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags", "traceparent", "tracestate"];
    let (all, b3) = (relay(known, next.clone()).await, relay(&known[..5], next.clone()).await);
    let back = App::fixed(200, "").await;
    let workload = |name: &str| Workload::new(name).protocol("http").otlp(shown.otlp());
    let _back = mesh.workload(workload("back").app(back.address)).await;
    let front = mesh.workload(workload("front").app(all.address).port("back.shop:80")).await;
    let _old = mesh.workload(workload("old").app(b3.address)).await;
    next.set(front.ports["back.shop:80"]).expect("set once");
    let client = mesh.workload(workload("client").port("front.shop:80").port("old.shop:80")).await;

    type Form = fn(&Caller) -> String;
    let forms: [(&str, Form, &[&str]); 6] = [
        ("W3C", Caller::traceparent, &["front"]),
        ("B3, single", |c| format!("b3: {:032x}-{:016x}-1\r\n", c.trace, c.span), &["front", "old"]),
        ("B3, multiple", |c| multiple(&format!("{:032x}", c.trace), c.span, "Sampled"), &["front", "old"]),
        ("B3 of 64 bits", |c| multiple(&format!("{:016x}", c.trace), c.span, "Sampled"), &["front", "old"]),
        ("B3, debug", |c| multiple(&format!("{:032x}", c.trace), c.span, "Flags"), &["front", "old"]),
        (
            "both",
            |c| c.traceparent() + &multiple(&format!("{:032x}", c.trace), c.span, "Sampled"),
            &["front", "old"],
        ),
    ];
    for (name, form, services) in forms {
        for service in services {
            let mut caller = Caller::new();
            if name == "B3 of 64 bits" {
                caller.trace = u128::from(fastrand::u64(1..));
            }
            let request = format!(
                "GET / HTTP/1.1\r\nhost: {service}.shop\r\n{}connection: close\r\n\r\n",
                form(&caller)
            );
            let answer = exchange(client.ports[&format!("{service}.shop:80")], request.as_bytes()).await;
            assert_eq!(answer.status(), 200, "{name}: {}", answer.text);
            shown.report(&caller).await;
            let trace = shown.whole(&caller, 7).await;
            assert_eq!(trace.spans.len(), 7, "{name}, {service}: {trace:#?}");
            trace.one("back", "server");
        }
    }
}

fn multiple(trace: &str, span: u64, decision: &str) -> String {
    format!("X-B3-TraceId: {trace}\r\nX-B3-SpanId: {span:016x}\r\nX-B3-{decision}: 1\r\n")
}
