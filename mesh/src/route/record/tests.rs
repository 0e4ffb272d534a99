use http::{HeaderMap, Method};
use serde_json::json;

use super::*;
use crate::model::PerMillion;
use crate::route::RouteTable;
use crate::route::fixtures::{configuration, exact, header, host, on, prefix, query, regex, route, segments};

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn table() -> RouteTable {
    let with_header = |header| RouteMatch { headers: vec![header], ..on(prefix("/")) };
    let mut from_object = route("taken", on(segments("/cart")));
    from_object.origin = Some(Origin {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "cart".into(),
        rule: 1,
        matched: 0,
    });
    let routes = vec![
        route("path", on(exact("/other"))),
        route("method", with_header(header(":method", "POST"))),
        route("missing", with_header(header("x-tenant", "a"))),
        route("header", with_header(header("x-user", "a"))),
        route("secret", with_header(header("authorization", "Bearer expected-token"))),
        route("query", RouteMatch { query: vec![query("page", "1")], ..on(prefix("/")) }),
        route("grpc", RouteMatch { grpc: true, ..on(prefix("/")) }),
        route("draw", RouteMatch { fraction: Some(PerMillion::percent(10)), ..on(prefix("/")) }),
        from_object,
        route("shadowed", RouteMatch { fraction: Some(PerMillion(0)), ..on(prefix("/")) }),
        route("behind", RouteMatch { case_sensitive: false, ..on(regex("/x.*")) }),
        route("folded", RouteMatch { case_sensitive: false, ..on(segments("/x")) }),
    ];
    RouteTable::compile(&configuration(vec![host(&["h", "*.h"], routes)])).unwrap()
}

fn explained(authority: &str, target: &str) -> RouteRecord {
    let headers = headers(&[("x-user", "b"), ("authorization", "Bearer sent-token")]);
    let request = RequestView::new(&Method::GET, authority, target, &headers);
    table().explain(&request, || u32::MAX / 2)
}

#[test]
fn each_route_that_was_not_taken_says_why() {
    let record = explained("a.h:80", "/cart/1?page=2");
    assert_eq!(
        record.to_string(),
        r#"route "taken" (HTTPRoute shop/cart, rule 1, match 0), in virtual host "h" by domain "*.h"
  not route "path": path: expected = "/other", the request has "/cart/1"
  not route "method": method: expected = "POST", the request has "GET"
  not route "missing": header "x-tenant": expected = "a", the request has none
  not route "header": header "x-user": expected = "a", the request has "b"
  not route "secret": header "authorization": expected [redacted], the request has "[redacted]"
  not route "query": query parameter "page": expected = "1", the request has "2"
  not route "grpc": gRPC: expected content-type application/grpc, the request has none
  not route "draw": fraction: expected a draw below 100000 of 1000000, the request has "499999"
  not route "shadowed": it matches too, but is shadowed by the earlier rule "taken"
  not route "behind": path: expected matches `/x.*`, the request has "/cart/1"
  not route "folded": path: expected "/x" or below, in any case, the request has "/cart/1""#
    );
}

#[test]
fn a_record_is_structured_and_in_camel_case() {
    let json = serde_json::to_value(explained("h", "/cart")).unwrap();
    assert_eq!(json["outcome"], "found");
    assert_eq!(json["virtualHost"], json!({"name": "h", "domain": "h"}));
    assert_eq!(json["matched"]["origin"]["kind"], "HTTPRoute");
    assert_eq!(
        json["missed"][3],
        json!({
            "route": {"name": "header", "index": 3, "origin": null},
            "reason": {"condition": {"on": {"header": "x-user"}, "expected": "= \"a\"", "actual": "b"}},
        })
    );
    assert_eq!(json["missed"][8]["reason"], json!({"shadowed": {"by": "taken"}}));
    assert_eq!(json.get("knownDomains"), None);
}

#[test]
fn credentials_never_stand_in_a_record() {
    for name in ["authorization", "Cookie", "proxy-authorization", "x-api-key"] {
        let rule = RouteMatch { headers: vec![header(name, "expected-secret")], ..on(prefix("/")) };
        let table = RouteTable::compile(&configuration(vec![host(&["*"], vec![route("r", rule)])])).unwrap();
        let sent: HeaderMap = [(name.parse().unwrap(), "sent-secret".parse().unwrap())].into_iter().collect();
        let record = table.explain(&RequestView::new(&Method::GET, "h", "/", &sent), || 0);
        let json = serde_json::to_string(&record).unwrap();
        for text in [record.to_string(), format!("{record:?}"), json] {
            assert!(!text.contains("secret") && text.contains(REDACTED), "{text}");
        }
    }
}

#[test]
fn a_host_that_nobody_has_lists_some_that_there_are() {
    let names: Vec<String> = (0..23).map(|n| format!("h{n}")).collect();
    let domains: Vec<&str> = names.iter().map(String::as_str).collect();
    let table = RouteTable::compile(&configuration(vec![host(&domains, vec![])])).unwrap();
    let none = HeaderMap::new();
    let record = table.explain(&RequestView::new(&Method::GET, "x", "/", &none), || 0);
    assert_eq!(record.outcome, Outcome::NoVirtualHost);
    assert_eq!((record.known_domains.as_slice(), record.more_domains), (&names[..20], 3));
    let text = record.to_string();
    assert!(text.starts_with("no domain of \"test\" matches host \"x\"; its domains: h0, h1, "), "{text}");
    assert!(text.ends_with("h18, h19 and 3 more"), "{text}");
    let record = table.explain(&RequestView::new(&Method::GET, "h1", "/", &none), || 0);
    assert_eq!(record.outcome, Outcome::NoRoute);
    assert_eq!(record.to_string(), "no route of virtual host \"h0\" (domain \"h1\") matches");
}
