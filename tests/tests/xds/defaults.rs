//! What holds of connections and streams where a listener says nothing, and what it says in place of that.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_tests::oracle::{
    Oracle, all_clusters, cluster, endpoints, merged, route_configuration, speaking_http2,
};
use tulle_tests::{Frame, LIMIT};

use crate::compare::Tally;

#[tokio::test]
async fn a_stream_without_movement_ends_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let route = |path: &str, more: Value| {
        let action = merged(json!({ "cluster": "a", "timeout": "0s" }), more);
        json!({ "match": { "path": path }, "route": action })
    };
    let at_last = json!({ "max_stream_duration": "1s" });
    let routes = [
        route("/silent", json!({})),
        route("/longer", json!({ "idle_timeout": "20s" })),
        route("/ever", json!({ "idle_timeout": "0s" })),
        route("/longer-at-last", json!({ "idle_timeout": "20s", "max_stream_duration": at_last })),
        route("/ever-at-last", json!({ "idle_timeout": "0s", "max_stream_duration": at_last })),
    ];
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    oracle.manager(json!({ "stream_idle_timeout": "0.2s" })).await;
    let mut tally = Tally::default();
    let whole = "GET PATH HTTP/1.1\r\nhost: h.test\r\n\r\n";
    let unfinished = "POST PATH HTTP/1.1\r\nhost: h.test\r\ncontent-length: 5\r\n\r\nhi";
    for (path, request, script) in [
        ("/silent", whole, "hang"),
        ("/silent", whole, "stall"),
        ("/silent", whole, "stall-chunk"),
        ("/silent", whole, "ok"),
        ("/silent", unfinished, "ok"),
        ("/longer", whole, "slow"),
        ("/ever", whole, "slow"),
    ] {
        let outcomes = oracle.both(request.replace("PATH", path).as_bytes(), script).await;
        tally.compare(&format!("{path} {script} {request:?}"), outcomes);
    }
    // What ends them is not that nothing moves.
    for path in ["/longer-at-last", "/ever-at-last"] {
        let [envoy, tulle] = oracle.both(unfinished.replace("PATH", path).as_bytes(), "ok").await;
        assert_ne!(envoy.received.body, "stream timeout", "{path}");
        assert!(tulle.received.body.contains("maxStream"), "{path}: {tulle}");
    }
    tally.end(&["local replies"]);
}

/// MAX_CONCURRENT_STREAMS and INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
const STREAMS: u16 = 3;
const WINDOW: u16 = 4;
/// Types of frames (RFC 9113, section 6).
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

#[tokio::test]
async fn as_many_streams_are_taken_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let ends = [oracle.listener(), oracle.sidecar.ports["oracle.test:80"]];
    for (options, expected) in [(json!({}), 1024), (json!({ "max_concurrent_streams": 7 }), 7)] {
        oracle.manager(json!({ "http2_protocol_options": options })).await;
        for end in ends {
            assert_eq!(setting(end, STREAMS).await, Some(expected), "{options}");
        }
    }
    // A difference that is meant so: unless more is asked for, what a connection can make the sidecar hold is bounded more tightly.
    assert_eq!(
        [setting(ends[0], WINDOW).await, setting(ends[1], WINDOW).await],
        [Some(16 << 20), Some(1 << 20)]
    );
    oracle.manager(json!({ "http2_protocol_options": { "initial_stream_window_size": 70_000 } })).await;
    for end in ends {
        assert_eq!(setting(end, WINDOW).await, Some(70_000));
    }
}

#[tokio::test]
async fn endpoints_are_told_of_the_windows_that_a_cluster_has() {
    let mut oracle = Oracle::start().await;
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let windows = json!({ "initial_stream_window_size": 70_000, "initial_connection_window_size": 100_000 });
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": "windows", "timeout": "5s" } },
    ] });
    let address = upstream.local_addr().expect("bound");
    oracle
        .push(vec![
            cluster("windows", speaking_http2(windows)),
            endpoints("windows", &[address]),
            route_configuration("routes", &[host, all_clusters()]),
        ])
        .await;
    let request = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
    for envoy in [true, false] {
        let seen = async {
            let (mut socket, _) = upstream.accept().await?;
            let mut preface = [0; 24];
            socket.read_exact(&mut preface).await?;
            let settings = Frame::read(&mut socket).await?.payload;
            // The connection's window is opened by an update, by what it is larger than it was to begin with.
            let update = loop {
                let frame = Frame::read(&mut socket).await?;
                if frame.kind == WINDOW_UPDATE {
                    break frame.payload;
                }
            };
            std::io::Result::Ok((setting_of(&settings, WINDOW), update))
        };
        let asked = oracle.one_of(envoy, request, "ok");
        let (seen, outcome) = tokio::join!(timeout(LIMIT, seen), asked);
        let (window, update) = seen.expect("it comes").expect("it speaks HTTP/2");
        assert_eq!(window, Some(70_000), "envoy: {envoy}");
        assert_eq!(update, (100_000_u32 - 65_535).to_be_bytes(), "envoy: {envoy}");
        assert_ne!(outcome.received.status, 200, "the endpoint says no more");
    }
}

/// What a server says of one of its settings in its first frame.
async fn setting(server: SocketAddr, wanted: u16) -> Option<u32> {
    let read = async {
        let mut socket = TcpStream::connect(server).await?;
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        Frame::read(&mut socket).await
    };
    let first = timeout(LIMIT, read).await.expect("it speaks HTTP/2").expect("it listens");
    assert_eq!(first.kind, SETTINGS, "they come first");
    setting_of(&first.payload, wanted)
}

fn setting_of(settings: &[u8], wanted: u16) -> Option<u32> {
    let mut each = settings.chunks_exact(6).map(|six| {
        (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
    });
    each.find(|(id, _)| *id == wanted).map(|(_, value)| value)
}
