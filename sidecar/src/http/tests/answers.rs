//! What the mesh answers itself, and what it notes of every answer.

use std::time::Duration;

use http::{Method, StatusCode};
use tulle_mesh::model::{
    Action, AdaptiveConcurrency, Authorization, DirectResponse, Fault, FaultAbort, FaultPart, FilterOverride,
    HttpFilter, LocalRateLimit, PerMillion, Permission, Policy, Principal, Redirect, RouteAction,
    StringMatch, TokenBucket,
};

use super::app::{App, Say};
use super::harness::{Setup, get, grpc, post, request};
use crate::http::body::BodyError;
use crate::http::server::{Handler, Interim};
use crate::listener::testing::{on_a_worker, refusing};

#[test]
fn a_redirect_and_a_direct_response_need_no_endpoint() {
    on_a_worker(async {
        let mut setup = Setup::new(&[]);
        setup.route.action = RouteAction::Redirect(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: None,
            path: None,
            status: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
        });
        let got = setup.build().send(get()).await;
        assert_eq!((got.status.as_u16(), got.header("location")), (301, "https://cart.shop/x?y=1"));

        let mut setup = Setup::new(&[]);
        let configured = DirectResponse { status: StatusCode::IM_A_TEAPOT, body: "short and stout".into() };
        setup.route.action = RouteAction::Respond(configured);
        let mesh = setup.build();
        let got = mesh.send(get()).await;
        assert_eq!((got.status.as_u16(), got.body), (418, Ok("short and stout".into())));
        assert_eq!(mesh.metric("http_client_request_duration_seconds_count", &["418"]), 1);
    });
}

#[test]
fn faults_delay_and_abort() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mut setup = Setup::new(&[app.address]);
        let (status, fraction) = (StatusCode::SERVICE_UNAVAILABLE, PerMillion::ALL);
        let delay = FaultPart::fixed(Duration::from_millis(20), fraction);
        let abort = FaultPart::fixed(FaultAbort { status, grpc_status: Some(9) }, fraction);
        let fault = Fault { delay: Some(delay), abort: Some(abort), ..Fault::default() };
        setup.route.filters = vec![FilterOverride::fault(fault)];
        setup.filters = HttpFilter::for_routes();
        let mesh = setup.build();
        let begun = std::time::Instant::now();
        let got = mesh.send(get()).await;
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert_eq!(got.status, 503);
        assert!(got.header("proxy-status").contains("proxy_internal_response"), "{got:?}");
        assert_eq!(mesh.send(grpc()).await.header("grpc-status"), "9");
        assert!(app.seen().is_empty());
    });
}

#[test]
fn no_route_no_cluster_and_no_endpoint_are_told_apart() {
    on_a_worker(async {
        let mesh = Setup::new(&[]).build();
        let got = mesh.send(get()).await;
        assert_eq!(got.status, 503);
        assert!(got.header("proxy-status").contains("destination_unavailable"), "{got:?}");

        let mut setup = Setup::new(&[]);
        setup.forward().backends[0].cluster = "missing".into();
        let got = setup.build().send(get()).await;
        assert_eq!(got.status, 503);
        assert!(got.header("proxy-status").contains("proxy_configuration_error"), "{got:?}");

        let mut setup = Setup::new(&[]);
        setup.route.matches.path = tulle_mesh::model::PathMatch::Exact("/other".into());
        let mesh = setup.build();
        let got = mesh.send(get()).await;
        assert_eq!(got.status, 404);
        assert!(got.header("proxy-status").contains("destination_not_found"), "{got:?}");
        assert_eq!(mesh.send(grpc()).await.header("grpc-status"), "12");
    });
}

#[test]
fn a_client_that_no_policy_allows_is_refused_and_told_who_it_seems_to_be() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let client = |identity| {
            let mut setup = Setup::inbound(app.address);
            setup.identity = Some(identity);
            let web = StringMatch::exact("spiffe://td/ns/shop/sa/web");
            setup.filters = vec![HttpFilter::Authorization(Authorization {
                name: "shop/cart".into(),
                action: Action::Allow,
                policies: vec![Policy {
                    name: "shop/cart#0".into(),
                    permissions: vec![Permission::Any],
                    principals: vec![Principal::Authenticated(Some(web))],
                }],
                audit_only: false,
            })];
            setup.build()
        };
        assert_eq!(client("spiffe://td/ns/shop/sa/web").send(get()).await.status, 200);
        let got = client("spiffe://td/ns/shop/sa/other").send(get()).await;
        assert_eq!(got.status, 403);
        assert!(got.header("proxy-status").contains("spiffe://td/ns/shop/sa/other"), "{got:?}");
        assert_eq!(got.header("x-tulle-outcome"), "failed", "its sidecar is told not to try again");
        assert_eq!(app.seen().len(), 1);
    });
}

#[test]
fn a_rate_limit_says_when_to_come_back() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mut setup = Setup::inbound(app.address);
        let bucket = TokenBucket { burst: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(60) };
        setup.filters = vec![HttpFilter::LocalRateLimit(LocalRateLimit::new("shop/cart", bucket))];
        let mesh = setup.build();
        assert_eq!(mesh.send(post("a")).await.status, 200);
        let got = mesh.send(post("a")).await;
        assert_eq!((got.status.as_u16(), got.header("retry-after")), (429, "60"));
        assert!(got.header("proxy-status").contains("shop/cart"), "{got:?}");
    });
}

#[test]
fn what_is_above_the_applications_capacity_is_handed_back_unprocessed() {
    on_a_worker(async {
        let app = App::new(|_| Say::Nothing).await;
        let mut setup = Setup::inbound(app.address);
        setup.identity = Some("spiffe://td/ns/shop/sa/web");
        setup.filters = vec![HttpFilter::AdaptiveConcurrency(AdaptiveConcurrency {
            min_concurrency: 1,
            max_concurrency: 1,
            update_interval: Duration::from_millis(100),
        })];
        let mesh = setup.build();
        let proxy = mesh.proxy.clone();
        let first = tokio::task::spawn_local(async move {
            proxy.handle(post("a"), Interim::default()).await;
        });
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        let got = mesh.send(post("b")).await;
        assert_eq!((got.status.as_u16(), got.header("x-tulle-outcome")), (503, "not-processed"));
        let proxy = mesh.proxy.clone();
        let mut health = request(Method::POST, &[("content-type", "application/grpc")], "");
        *health.uri_mut() = http::Uri::from_static("/grpc.health.v1.Health/Check");
        let probe = tokio::task::spawn_local(async move {
            proxy.handle(health, Interim::default()).await;
        });
        while app.seen().len() < 2 {
            tokio::task::yield_now().await;
        }
        first.abort();
        probe.abort();
    });
}

#[test]
fn a_peers_sidecar_hears_that_the_application_is_gone_and_others_do_not() {
    on_a_worker(async {
        for (identity, outcome) in [(Some("spiffe://td/ns/shop/sa/web"), "not-processed"), (None, "")] {
            let mut setup = Setup::inbound(refusing().await);
            setup.identity = identity;
            let got = setup.build().send(post("a")).await;
            assert_eq!((got.status.as_u16(), got.header("x-tulle-outcome")), (503, outcome));
        }
    });
}

#[test]
fn a_body_that_is_cut_short_fails_and_is_the_endpoints_fault() {
    on_a_worker(async {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
        let app = App::new(|_| Say::Last(half.into())).await;
        let mesh = Setup::new(&[app.address]).build();
        let got = mesh.send(get()).await;
        assert_eq!((got.status.as_u16(), got.body), (200, Err(BodyError::Truncated)));
        assert_eq!(app.seen().len(), 1, "its head was sent on already");
        let count = "http_client_request_duration_seconds_count";
        assert_eq!(mesh.metric(count, &["http_response_incomplete"]), 1);
        assert_eq!(mesh.metric("tulle_upstream_attempt_failures_total", &["cart"]), 1);

        let app = App::new(|_| Say::Ok("never read")).await;
        let mesh = Setup::new(&[app.address]).build();
        drop(mesh.proxy.handle(get(), Interim::default()).await);
        assert_eq!(mesh.metric(count, &["http_request_error"]), 1);
        assert_eq!(
            mesh.metric("tulle_upstream_attempt_failures_total", &["cart"]),
            1,
            "the attempt was cut short"
        );
    });
}

#[test]
fn a_client_that_goes_away_leaves_a_record_and_nothing_else() {
    on_a_worker(async {
        let app = App::new(|_| Say::Nothing).await;
        let mesh = Setup::new(&[app.address]).build();
        let proxy = mesh.proxy.clone();
        let gone = tokio::task::spawn_local(async move {
            proxy.handle(get(), Interim::default()).await;
        });
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(mesh.metric("http_client_request_duration_seconds_count", &[]), 1);
        let endpoint = mesh.cluster.endpoints.iter().next().expect("one");
        assert_eq!(endpoint.stats.in_flight(), 0);
        assert_eq!(mesh.metric("tulle_upstream_ejections_total", &[]), 0);
    });
}

#[test]
fn a_bodiless_answer_is_a_whole_one() {
    on_a_worker(async {
        let app = App::new(|_| Say::Raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".into())).await;
        let mesh = Setup::new(&[app.address]).build();
        let got = mesh.send(request(Method::HEAD, &[], "")).await;
        assert_eq!((got.status.as_u16(), got.header("content-length")), (200, "10"));
        assert_eq!(mesh.metric("http_client_request_duration_seconds_count", &["error_type"]), 0);
    });
}
