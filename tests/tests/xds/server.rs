//! `server`: who says that it answers.

use serde_json::json;
use tulle_tests::oracle::{Oracle, Outcome};

/// What the client is told, or `None` where the proxy answers and says nothing.
fn server(outcome: &Outcome) -> Option<&str> {
    outcome.received.headers.iter().find(|(name, _)| name == "server").map(|(_, name)| name.as_str())
}

#[tokio::test]
async fn the_listener_says_whose_name_stands_there() {
    let mut oracle = Oracle::start().await;
    oracle.compared = &["server"];
    let routes = json!([
        { "match": { "path": "/said" }, "direct_response": { "status": 200, "body": { "inline_string": "x" } } },
        { "match": { "path": "/gone" }, "route": { "cluster": "nobody" } },
        { "match": { "path": "/named" }, "route": { "cluster": "a" },
            "response_headers_to_add": [{ "header": { "key": "server", "value": "route" } }] },
        { "match": { "path": "/app" }, "route": { "cluster": "a" } },
    ]);
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut told = 0;
    for name in [json!({}), json!({ "server_name": "edge" })] {
        for how in ["OVERWRITE", "APPEND_IF_ABSENT", "PASS_THROUGH"] {
            let mut settings = name.clone();
            settings["server_header_transformation"] = json!(how);
            oracle.manager(settings.clone()).await;
            for path in ["/app", "/said", "/gone", "/none", "/named"] {
                for script in ["ok", "200+server+app"] {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: h.test\r\n\r\n");
                    let [envoy, tulle] = oracle.both(request.as_bytes(), script).await;
                    assert_eq!(envoy.received.status, tulle.received.status);
                    let (theirs, ours) = (server(&envoy), server(&tulle));
                    let case = format!("{settings} {path} {script}");
                    if how == "OVERWRITE" && name == json!({}) {
                        // A difference that is meant so: where nothing is said, the application says who it is.
                        let app = (script == "200+server+app").then_some("app");
                        let expected = match path {
                            "/app" => app.map(str::to_owned),
                            "/named" => Some(app.map_or("route".to_owned(), |app| format!("{app},route"))),
                            _ => None,
                        };
                        assert_eq!((theirs, ours), (Some("envoy"), expected.as_deref()), "{case}");
                    } else {
                        assert_eq!(theirs, ours, "{case}");
                        told += usize::from(ours.is_some());
                    }
                }
            }
        }
    }
    assert!(told > 30, "{told} told");
}
