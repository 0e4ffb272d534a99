//! `x-request-id`: who gets a new one, and who is told of it.

use serde_json::json;
use tulle_tests::oracle::{Oracle, Outcome, typed};

/// What became of an ID.
#[derive(Debug, PartialEq, Eq)]
enum Id {
    None,
    Kept,
    New,
}

/// Towards the upstream, and in what the client is told.
fn ids(outcome: &Outcome, sent: &str) -> [Id; 2] {
    let upstream = outcome.upstream[0].1.header("x-request-id");
    let told = outcome.received.headers.iter().find(|(name, _)| name == "x-request-id");
    let told = told.map_or("", |(_, id)| id);
    assert!(told.is_empty() || told == upstream, "{outcome}");
    [upstream, told].map(|id| match id {
        "" => Id::None,
        _ if id == sent => Id::Kept,
        // A UUID of version 4.
        _ => {
            assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id:?}");
            Id::New
        }
    })
}

#[tokio::test]
async fn an_id_is_made_replaced_or_kept() {
    let mut oracle = Oracle::start().await;
    oracle.compared = &["x-request-id"];
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" } });
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": [route] })]).await;
    let proxied = json!([{
        "name": "envoy.filters.listener.proxy_protocol",
        "typed_config": typed("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", json!({})),
    }]);
    let (mut made, mut replaced, mut kept, mut none) = (0, 0, 0, 0);
    for bits in 0..16 {
        let settings = json!({
            "generate_request_id": bits & 1 == 0,
            "preserve_external_request_id": bits & 2 != 0,
            "use_remote_address": bits & 4 != 0,
            "always_set_request_id_in_response": bits & 8 != 0,
        });
        oracle.listening(settings.clone(), proxied.clone()).await;
        for client in ["127.0.0.1", "10.9.8.7", "8.8.8.8"] {
            for forwarded in ["", "x-forwarded-for: 10.1.2.3\r\n"] {
                for sent in ["", "mine", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"] {
                    let field = match sent {
                        "" => String::new(),
                        sent => format!("x-request-id: {sent}\r\n"),
                    };
                    let request = format!(
                        "PROXY TCP4 {client} 10.0.0.1 4321 80\r\n\
                         GET / HTTP/1.1\r\nhost: h.test\r\n{forwarded}{field}\r\n"
                    );
                    let [envoy, tulle] = oracle.both(request.as_bytes(), "ok").await;
                    let ours = ids(&tulle, sent);
                    assert_eq!(ids(&envoy, sent), ours, "{settings} {request:?}");
                    match ours[0] {
                        Id::New if sent.is_empty() => made += 1,
                        Id::New => replaced += 1,
                        Id::Kept => kept += 1,
                        Id::None => none += 1,
                    }
                }
            }
        }
    }
    assert!([made, replaced, kept, none].iter().all(|count| *count > 0), "{made} {replaced} {kept} {none}");
}

#[tokio::test]
async fn what_the_proxy_answers_itself_tells_the_id_too() {
    let mut oracle = Oracle::start().await;
    oracle.compared = &["x-request-id"];
    oracle.manager(json!({ "always_set_request_id_in_response": true })).await;
    let request = b"GET / HTTP/1.1\r\nhost: nobody.test\r\nx-request-id: mine\r\n\r\n";
    for outcome in oracle.both(request, "ok").await {
        assert_eq!(outcome.received.status, 404);
        let told = ("x-request-id".to_owned(), "mine".to_owned());
        assert!(outcome.received.headers.contains(&told), "{outcome}");
    }
}
