use proptest::prelude::*;
use tulle_mesh::model::{HeaderMatch, HeaderTest, RateLimitedBackoff, ResetHeader, StringMatch};

use super::*;

const NOT_PROCESSED: End = End::NotProcessed { connect: false };
const NO_CONNECTION: End = End::NotProcessed { connect: true };

fn rules(method: &Method) -> Rules<'static> {
    Rules {
        concerned: true,
        policy: None,
        idempotent: is_idempotent(method, &HeaderMap::new()),
        is_retry: false,
        direction: TrafficDirection::Outbound,
    }
}

fn answer(status: u16, mesh_made: bool) -> End {
    let status = StatusCode::from_u16(status).expect("valid");
    End::Answer { status, grpc_status: None, mesh_made, named: false, retry_after: None }
}

fn policy(on: &[RetryOn]) -> RetryPolicy {
    RetryPolicy {
        headers: Vec::new(),
        request_headers: Vec::new(),
        rate_limited: None,
        on: on.to_vec(),
        statuses: vec![418],
        attempts: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        backoff: Duration::from_millis(25),
        max_backoff: Duration::from_millis(250),
    }
}

fn retries(rules: &Rules<'_>, end: End) -> bool {
    rules.decide(end, 0, 0).is_some()
}

#[test]
fn a_post_is_only_tried_again_when_it_was_not_seen() {
    let post = rules(&Method::POST);
    assert!(retries(&post, NOT_PROCESSED) && retries(&post, NO_CONNECTION));
    for end in [End::Reset, End::TimedOut, answer(502, true), answer(503, true), answer(503, false)] {
        assert!(!retries(&post, end), "{end:?}");
    }
}

#[test]
fn a_safe_request_is_tried_again_after_failures_of_the_mesh_but_not_of_the_application() {
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
        let safe = rules(&method);
        for end in [NOT_PROCESSED, End::Reset, answer(502, true), answer(503, true), answer(504, true)] {
            assert!(retries(&safe, end), "{method} {end:?}");
        }
        for end in [answer(502, false), answer(503, false), answer(500, true), answer(403, true)] {
            assert!(!retries(&safe, end), "{method} {end:?}");
        }
    }
    assert!(!retries(&rules(&Method::PUT), End::Reset) && !retries(&rules(&Method::DELETE), End::Reset));
}

#[test]
fn a_key_makes_a_post_idempotent() {
    let headers =
        HeaderMap::from_iter([("idempotency-key".parse().expect("valid"), "1".parse().expect("valid"))]);
    assert!(is_idempotent(&Method::POST, &headers) && !is_idempotent(&Method::POST, &HeaderMap::new()));
}

#[test]
fn a_retry_of_the_hop_before_is_not_multiplied() {
    let everything = policy(&RetryOn::ALL.map(|(on, _)| on));
    let chained = Rules { is_retry: true, policy: Some(&everything), ..rules(&Method::GET) };
    for end in [End::Reset, End::TimedOut, answer(503, true), answer(503, false)] {
        assert!(!retries(&chained, end), "{end:?}");
    }
    assert!(retries(&chained, NOT_PROCESSED) && retries(&chained, NO_CONNECTION));
}

#[test]
fn towards_the_application_only_a_lost_race_with_its_idle_timeout_is_tried_again() {
    let inbound = Rules { direction: TrafficDirection::Inbound, ..rules(&Method::GET) };
    assert!(retries(&inbound, NOT_PROCESSED));
    for end in [NO_CONNECTION, End::Reset, answer(503, false), answer(503, true)] {
        assert!(!retries(&inbound, end), "{end:?}");
    }
}

#[test]
fn each_condition_of_a_policy_means_what_it_means_in_envoy() {
    let grpc = |status| End::Answer {
        status: StatusCode::OK,
        grpc_status: Some(status),
        mesh_made: false,
        named: false,
        retry_after: None,
    };
    let table: [(RetryOn, Vec<End>, Vec<End>); 12] = [
        (
            RetryOn::ServerError,
            vec![answer(500, false), answer(503, false), End::Reset, End::TimedOut],
            vec![answer(404, false)],
        ),
        (
            RetryOn::GatewayError,
            vec![answer(502, false), answer(503, false), answer(504, false), End::Reset, End::TimedOut],
            vec![answer(500, false)],
        ),
        (RetryOn::Reset, vec![End::Reset, End::TimedOut], vec![answer(503, false)]),
        (RetryOn::ConnectFailure, vec![NO_CONNECTION], vec![End::Reset]),
        (RetryOn::RefusedStream, vec![NOT_PROCESSED], vec![End::Reset]),
        (RetryOn::Retriable4xx, vec![answer(409, false)], vec![answer(404, false)]),
        (RetryOn::Status, vec![answer(418, false)], vec![answer(419, false)]),
        (RetryOn::Cancelled, vec![grpc(1)], vec![grpc(2)]),
        (RetryOn::DeadlineExceeded, vec![grpc(4)], vec![grpc(14)]),
        (RetryOn::Internal, vec![grpc(13)], vec![grpc(0)]),
        (RetryOn::ResourceExhausted, vec![grpc(8)], vec![grpc(9)]),
        (RetryOn::Unavailable, vec![grpc(14)], vec![grpc(13), answer(503, false)]),
    ];
    for (on, yes, no) in table {
        let policy = policy(&[on]);
        let rules = Rules { policy: Some(&policy), ..rules(&Method::POST) };
        for end in yes {
            assert!(retries(&rules, end), "{on:?} {end:?}");
        }
        for end in no {
            assert!(!retries(&rules, end), "{on:?} {end:?}");
        }
    }
}

#[test]
fn retries_end_where_the_policy_says() {
    let two = policy(&[RetryOn::ServerError]);
    let rules = Rules { policy: Some(&two), ..rules(&Method::GET) };
    let count = (0..10).take_while(|n| rules.decide(answer(503, false), *n, 0).is_some()).count();
    assert_eq!(count, 2);
}

#[test]
fn a_policy_that_names_headers_goes_by_them() {
    let exact =
        |name: &str, value: &str| HeaderMatch::new(name, HeaderTest::Value(StringMatch::exact(value)));
    let named = RetryPolicy { headers: vec![exact("x-again", "yes")], ..policy(&[RetryOn::Headers]) };
    let mut headers = HeaderMap::new();
    assert!(!is_named(None, &headers) && !is_named(Some(&named), &headers));
    headers.insert("x-again", "yes".parse().expect("valid"));
    assert!(is_named(Some(&named), &headers));
    let end = |named| End::Answer {
        status: StatusCode::OK,
        grpc_status: None,
        mesh_made: false,
        named,
        retry_after: None,
    };
    let rules = Rules { policy: Some(&named), ..rules(&Method::POST) };
    assert!(rules.decide(end(true), 0, 0).is_some());
    assert_eq!(rules.decide(end(false), 0, 0), None);
    let stranger = Rules { concerned: false, ..rules };
    assert_eq!(stranger.decide(end(true), 0, 0), None);
    assert!(stranger.decide(NOT_PROCESSED, 0, 0).is_some(), "what is safe stays so");

    let wanted = RetryPolicy { request_headers: vec![exact("x-again", "yes")], ..policy(&[]) };
    let view = |headers| RequestView::new(&Method::GET, "a", "/", headers);
    assert!(concerns(Some(&wanted), &view(&headers)) && concerns(None, &view(&headers)));
    assert!(!concerns(Some(&wanted), &view(&HeaderMap::new())));
}

#[test]
fn an_answer_asks_for_a_pause_by_the_headers_that_are_named() {
    let header = |name: &'static str, is_time| ResetHeader { name: HeaderName::from_static(name), is_time };
    let reset = vec![header("x-at", true), header("x-in", false)];
    let limited = RateLimitedBackoff { reset, max: Duration::from_secs(60) };
    let limited = RetryPolicy { rate_limited: Some(limited), ..policy(&[]) };
    let asked = |fields: &[(&'static str, &str)]| {
        let fields = fields.iter();
        let headers = fields.map(|(n, v)| (HeaderName::from_static(n), v.parse().expect("valid"))).collect();
        retry_after(Some(&limited), &headers, || Duration::from_millis(1_000_500)).map(|d| d.as_millis())
    };
    assert_eq!(asked(&[("x-in", " 7 ")]), Some(7000));
    assert_eq!(asked(&[("x-in", "7"), ("x-at", "1002")]), Some(1500));
    assert_eq!(asked(&[("x-in", "7"), ("x-at", "999")]), Some(7000), "over already");
    assert_eq!(asked(&[("x-in", "61")]), None, "too long");
    assert_eq!(asked(&[("x-in", "soon"), ("retry-after", "7")]), None);
}

#[test]
fn retry_after_is_waited_for() {
    let policy = policy(&[RetryOn::ServerError]);
    let rules = Rules { policy: Some(&policy), ..rules(&Method::GET) };
    let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, "3".parse().expect("valid"))]);
    let end = End::Answer {
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc_status: None,
        mesh_made: false,
        named: false,
        retry_after: retry_after(None, &headers, || panic!("no time is asked for")),
    };
    assert_eq!(rules.decide(end, 0, u64::MAX), Some(Duration::from_secs(3)));
}

#[test]
fn a_request_that_was_not_seen_goes_elsewhere_at_once() {
    let post = rules(&Method::POST);
    assert_eq!(post.decide(NO_CONNECTION, 0, u64::MAX), Some(Duration::ZERO));
    assert!(post.decide(NO_CONNECTION, 1, u64::MAX).expect("retried") > Duration::ZERO);
}

proptest! {
    #[test]
    fn pauses_have_full_jitter_within_envoys_intervals(retries in 0u32..40, random: u64) {
        let (base, max) = DEFAULT_BACKOFF;
        let pause = backoff(base, max, retries, random);
        prop_assert!(pause <= max);
        prop_assert!(retries > 3 || pause <= base * ((1 << (retries + 1)) - 1));
    }
}
