//! What routes of the Gateway API promise beyond matching and splitting: sessions, cross-origin rules, parts of traffic.

use tulle_tests::{Answer, LIMIT, exchange, wait_for};

use crate::routing::Shop;

/// Which of the two applications has answered.
fn version(answer: &Answer) -> &str {
    let at = answer.text.rfind("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {}", answer.text));
    &answer.text[at + 4..at + 6]
}

#[tokio::test]
async fn a_session_stays_at_its_backend_when_the_weights_move() {
    let shop = Shop::open().await;
    let weights = |v1: u32, v2: u32| {
        format!(
            "  - sessionPersistence: {{sessionName: basket}}
    backendRefs: [{{name: echo-v1, port: 80, weight: {v1}}}, {{name: echo-v2, port: 80, weight: {v2}}}]"
        )
    };
    shop.route(&weights(1, 1)).await;
    let first = shop.get("/").await;
    let home = version(&first).to_owned();
    let set = first.header("set-cookie");
    assert!(set.starts_with("basket=") && set.ends_with("; Path=/; HttpOnly"), "{set}");
    let cookie = format!("cookie: a=b; {}\r\n", set.split(';').next().unwrap_or_default());

    // Its backend takes no new requests any more.
    let (v1, v2) = if home == "v1" { (0, 1) } else { (1, 0) };
    shop.route(&weights(v1, v2)).await;
    for _ in 0..10 {
        let back = shop.get_with("/", &cookie).await;
        assert_eq!((version(&back), back.header("set-cookie")), (home.as_str(), ""));
        assert_ne!(version(&shop.get("/").await), home, "a new session goes by weight");
    }

    // It is gone: the session moves, once, and says so.
    let other = if home == "v1" { "echo-v2" } else { "echo-v1" };
    shop.route(&format!(
        "  - sessionPersistence: {{sessionName: basket}}\n    backendRefs: [{{name: {other}, port: 80}}]"
    ))
    .await;
    let moved = shop.get_with("/", &cookie).await;
    assert_ne!(version(&moved), home);
    assert!(moved.header("set-cookie").starts_with("basket="), "{}", moved.text);
}

#[tokio::test]
async fn a_session_in_a_header_ends_when_its_time_is_over() {
    let shop = Shop::open().await;
    shop.route(
        "  - sessionPersistence: {sessionName: x-basket, type: Header, absoluteTimeout: 2s}
    backendRefs: [{name: echo-v1, port: 80}, {name: echo-v2, port: 80}]",
    )
    .await;
    let first = shop.get("/").await;
    let token = first.header("x-basket").to_owned();
    assert!(!token.is_empty(), "{}", first.text);
    let header = format!("x-basket: {token}\r\n");
    let back = shop.get_with("/", &header).await;
    if back.header("x-basket").is_empty() {
        assert_eq!(version(&back), version(&first));
    }
    let ended = || async {
        let answer = shop.get_with("/", &header).await;
        let renewed = answer.header("x-basket");
        if !renewed.is_empty() && renewed != token { Ok(()) } else { Err("the session goes on".to_owned()) }
    };
    wait_for(LIMIT, ended).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn pages_of_other_origins_hear_what_they_may_do() {
    let shop = Shop::open().await;
    shop.route(
        "  - matches: [{path: {type: PathPrefix, value: /lost}}]
    filters: [{type: CORS, cors: {allowOrigins: ['https://shop.example']}}]
    backendRefs: [{name: nowhere, port: 80}]
  - filters:
    - type: CORS
      cors: {allowOrigins: ['https://*.example'], allowCredentials: true, allowMethods: [PUT], allowHeaders: ['*'],
        exposeHeaders: [x-seen], maxAge: 60}
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    let asked = shop.v1.seen().len();
    let preflight = |origin: &str| {
        let request = format!(
            "OPTIONS / HTTP/1.1\r\nhost: echo.shop\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\n\
             access-control-request-headers: x-a\r\nconnection: close\r\n\r\n"
        );
        async move { exchange(shop.port, request.as_bytes()).await }
    };
    let allowed = preflight("https://shop.example").await;
    assert_eq!(allowed.status(), 200, "{}", allowed.text);
    let said = ["allow-origin", "allow-credentials", "allow-methods", "allow-headers", "max-age"]
        .map(|name| allowed.header(&format!("access-control-{name}")).to_owned());
    assert_eq!(said, ["https://shop.example", "true", "PUT", "x-a", "60"]);
    let refused = preflight("https://shop.evil").await;
    assert_eq!((refused.status(), refused.header("access-control-allow-origin")), (200, ""));
    assert_eq!(shop.v1.seen().len(), asked, "no application sees a preflight request");

    let answer = shop.get_with("/", "origin: https://a.b.example\r\n").await;
    assert_eq!(version(&answer), "v1");
    assert_eq!(answer.header("access-control-allow-origin"), "https://a.b.example");
    assert_eq!(answer.header("access-control-expose-headers"), "x-seen");
    assert_eq!(answer.header("vary"), "Origin");
    let foreign = shop.get_with("/", "origin: https://shop.evil\r\n").await;
    assert_eq!((version(&foreign), foreign.header("access-control-allow-origin")), ("v1", ""));
    // What the mesh says itself can be read too.
    let lost = shop.get_with("/lost", "origin: https://shop.example\r\n").await;
    assert_eq!((lost.status(), lost.header("access-control-allow-origin")), (500, "https://shop.example"));
}

#[tokio::test]
async fn a_part_of_the_requests_is_mirrored() {
    let shop = Shop::open().await;
    let mirror = |part: &str| {
        format!(
            "  - filters: [{{type: RequestMirror, requestMirror: {{{part}, backendRef: {{name: echo-v2, port: 80}}}}}}]
    backendRefs: [{{name: echo-v1, port: 80}}]"
        )
    };
    let requests = "GET /copy HTTP/1.1\r\nhost: echo.shop\r\n\r\n".repeat(799)
        + "GET /copy HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    let copies = || shop.v2.seen().iter().filter(|seen| seen.line == "GET /copy HTTP/1.1").count();
    for part in ["percent: 25", "fraction: {numerator: 1, denominator: 4}"] {
        shop.route(&mirror(part)).await;
        let before = copies();
        let answer = exchange(shop.port, requests.as_bytes()).await;
        assert_eq!(answer.statuses(), vec![200; 800]);
        // Six standard deviations of a binomial around 200.
        let arrived = || async {
            let copies = copies() - before;
            if copies >= 126 { Ok(()) } else { Err(format!("{copies} copies of 800")) }
        };
        wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{part}: {error}"));
        assert!(copies() - before <= 274, "{part}: {} copies of 800", copies() - before);
    }
    shop.route(&mirror("percent: 0")).await;
    let before = copies();
    exchange(shop.port, requests.as_bytes()).await;
    assert_eq!(copies(), before);
}
