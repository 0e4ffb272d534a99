//! What is sent again, and what never is.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Method;
use tulle_mesh::model::{RetryBudget, RetryOn, RetryPolicy};

use super::app::{App, Say, status};
use super::harness::{Mesh, Setup, get, grpc, post, request};
use crate::http::exchange::Exchange;
use crate::http::server::Interim;
use crate::listener::testing::{on_a_worker, refusing};
use crate::retry::replay::MAX_REPLAY;
use crate::telemetry::record::RetrySkipped;

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        headers: Vec::new(),
        request_headers: Vec::new(),
        rate_limited: None,
        on: vec![on],
        statuses: Vec::new(),
        attempts: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(2),
    }
}

#[test]
fn a_post_reaches_the_application_at_most_once() {
    on_a_worker(async {
        for say in [Say::Reset, Say::Close, status(503), status(500)] {
            let app = App::new({
                let say = say.clone();
                move |_| say.clone()
            })
            .await;
            let mesh = Setup::new(&[app.address]).build();
            let got = mesh.send(post("pay")).await;
            assert!(got.status.is_server_error(), "{say:?}: {got:?}");
            assert_eq!(app.seen().len(), 1, "{say:?}");
            assert_eq!(mesh.metric("tulle_upstream_retries_total", &[]), 0);
        }
    });
}

#[test]
fn a_get_is_sent_again_after_a_reset_but_not_after_the_applications_own_503() {
    on_a_worker(async {
        let app = App::new(|n| if n < 2 { Say::Reset } else { Say::Ok("done") }).await;
        let mesh = Setup::new(&[app.address]).build();
        let got = mesh.send(get()).await;
        assert_eq!((got.status.as_u16(), got.body), (200, Ok("done".into())));
        assert_eq!(app.seen().len(), 3);
        assert_eq!(mesh.metric("tulle_upstream_retries_total", &["cart"]), 2);
        assert_eq!(mesh.metric("tulle_upstream_attempts_total", &["cart"]), 3);
        assert_eq!(mesh.metric("http_client_request_duration_seconds_count", &[]), 1, "one request");

        let app = App::new(|_| status(503)).await;
        let mesh = Setup::new(&[app.address]).build();
        let got = mesh.send(get()).await;
        assert_eq!((got.status.as_u16(), got.header("proxy-status")), (503, ""));
        assert_eq!(app.seen().len(), 1);
    });
}

#[test]
fn what_could_not_be_connected_goes_elsewhere_whatever_its_method() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mesh = Setup::new(&[refusing().await, app.address]).build();
        for _ in 0..20 {
            assert_eq!(mesh.send(post("pay")).await.status, 200);
        }
        let seen = app.seen();
        assert_eq!(seen.len(), 20, "each once");
        assert!(seen.iter().all(|request| request.body == b"pay"));
        assert_eq!(mesh.metric("tulle_upstream_ejections_total", &["cart"]), 1);
    });
}

#[test]
fn a_retry_goes_to_the_endpoint_that_has_come_meanwhile() {
    on_a_worker(async {
        let new = App::new(|_| Say::Ok("new")).await;
        let mesh: Rc<OnceCell<Mesh>> = Rc::default();
        let old = App::new({
            let (mesh, new) = (mesh.clone(), new.address);
            move |_| {
                mesh.get().expect("it was asked").moved(&[new]);
                Say::Reset
            }
        })
        .await;
        let _ = mesh.set(Setup::new(&[old.address]).build());
        let got = mesh.get().expect("set").send(get()).await;
        assert_eq!((got.status.as_u16(), got.body), (200, Ok("new".into())));
        assert_eq!((old.seen().len(), new.seen().len()), (1, 1));
    });
}

#[test]
fn when_nothing_can_be_connected_the_answer_says_why() {
    on_a_worker(async {
        let address = refusing().await;
        let got = Setup::new(&[address]).build().send(post("pay")).await;
        assert_eq!(got.status, 503);
        let expected = format!("tulle; error=connection_refused; details=\"{address}: no connection: ");
        assert!(got.header("proxy-status").starts_with(&expected), "{got:?}");
        let got = Setup::new(&[address]).build().send(grpc()).await;
        assert_eq!((got.status.as_u16(), got.header("grpc-status")), (200, "14"));
    });
}

#[test]
fn when_all_fail_the_endpoint_sees_at_most_a_fifth_more() {
    on_a_worker(async {
        let app = App::new(|_| Say::Reset).await;
        let mut setup = Setup::new(&[app.address]);
        // The default policy, but for its pauses.
        setup.forward().retry = Some(policy(RetryOn::Reset));
        let mesh = setup.build();
        let begun = Instant::now();
        for _ in 0..1000 {
            assert_eq!(mesh.send(get()).await.status, 503);
        }
        let seen = app.seen().len() as u64;
        // Ten a second are allowed to whoever is slow.
        let most = 1200 + 10 * begun.elapsed().as_secs();
        assert!((1100..=most).contains(&seen), "{seen}, not at most {most}");
        assert!(mesh.metric("tulle_upstream_retries_refused_total", &["cart"]) > 0);
    });
}

#[test]
fn a_policy_sends_a_short_body_again_and_marks_the_retry() {
    on_a_worker(async {
        let app = App::new(|n| if n == 0 { status(503) } else { Say::Ok("") }).await;
        let mut setup = Setup::new(&[app.address]);
        setup.forward().retry = Some(policy(RetryOn::GatewayError));
        let body = vec![b'x'; MAX_REPLAY];
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let fields = [("traceparent", trace)];
        let got = setup.build().send(request(Method::POST, &fields, body.clone())).await;
        assert_eq!(got.status, 200);
        let seen = app.seen();
        assert!(seen.len() == 2 && seen.iter().all(|request| request.body == body));
        assert_eq!((seen[0].header("x-envoy-attempt-count"), seen[0].header("tracestate")), (None, None));
        assert_eq!(seen[1].header("x-envoy-attempt-count"), Some("2"));
        assert_eq!(seen[1].header("tracestate"), Some("tulle=r"));
        assert_eq!(seen[0].header("x-request-id"), seen[1].header("x-request-id"));
    });
}

#[test]
fn a_long_body_is_not_sent_again() {
    on_a_worker(async {
        let app = App::new(|_| status(503)).await;
        let mut setup = Setup::new(&[app.address]);
        setup.forward().retry = Some(policy(RetryOn::GatewayError));
        let got = setup.build().send(post(vec![b'x'; MAX_REPLAY + 1])).await;
        assert_eq!(got.status, 503);
        assert_eq!(app.seen().len(), 1);
    });
}

#[test]
fn the_record_says_why_there_was_no_other_attempt() {
    on_a_worker(async {
        let app = App::new(|_| status(503)).await;
        let spent = RetryBudget { percent: 0.0, min_per_second: 0, interval: Duration::from_secs(10) };
        for (body, budget, skipped) in [
            (MAX_REPLAY + 1, None, Some(RetrySkipped::BodyTooLarge)),
            (1, Some(spent), Some(RetrySkipped::Budget)),
            (1, None, None),
        ] {
            let mut setup = Setup::new(&[app.address]);
            setup.forward().retry = Some(policy(RetryOn::GatewayError));
            setup.cluster.limits.retry_budget = budget;
            let mesh = setup.build();
            let (head, body) = post(vec![b'x'; body]).into_parts();
            let mut exchange = Exchange::new(&mesh.worker, &mesh.proxy.downstream, head, body);
            let answered = mesh.proxy.answer(&mut exchange, &Interim::default()).await;
            assert_eq!(answered.map(|answered| answered.response.status().as_u16()).ok(), Some(503));
            assert_eq!(exchange.retry_skipped, skipped);
        }
    });
}

#[test]
fn the_last_answer_of_the_application_is_the_clients_when_retries_end() {
    on_a_worker(async {
        let app = App::new(|_| status(503)).await;
        let mut setup = Setup::new(&[app.address]);
        setup.forward().retry = Some(policy(RetryOn::ServerError));
        let got = setup.build().send(get()).await;
        assert_eq!((got.status.as_u16(), got.header("proxy-status")), (503, ""));
        assert_eq!(app.seen().len(), 3, "as in Envoy: one, and two retries");
    });
}

#[test]
fn a_retry_of_the_hop_before_is_not_multiplied() {
    on_a_worker(async {
        for field in [("x-envoy-attempt-count", "2"), ("tracestate", "x=1,tulle=r")] {
            let app = App::new(|_| Say::Reset).await;
            let mut setup = Setup::new(&[app.address]);
            setup.forward().retry = Some(policy(RetryOn::ServerError));
            setup.build().send(request(Method::GET, &[field], "")).await;
            assert_eq!(app.seen().len(), 1, "{field:?}");
        }
    });
}

#[test]
fn one_bad_endpoint_of_two_is_ejected_and_no_get_fails() {
    on_a_worker(async {
        let (bad, good) = (App::new(|_| Say::Reset).await, App::new(|_| Say::Ok("")).await);
        let mesh = Setup::new(&[bad.address, good.address]).build();
        for _ in 0..60 {
            assert_eq!(mesh.send(get()).await.status, 200);
        }
        assert!(mesh.metric("tulle_upstream_ejections_total", &["cart"]) >= 1);
        assert!(bad.seen().len() <= 10, "{}", bad.seen().len());
    });
}

#[test]
fn a_request_ends_with_its_timeout_which_names_itself() {
    on_a_worker(async {
        let app = App::new(|_| Say::Nothing).await;
        let mut setup = Setup::new(&[app.address]);
        setup.forward().timeouts.request = Some(Duration::from_millis(800));
        let mesh = setup.build();
        let begun = Instant::now();
        let got = mesh.send(get()).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(30), "{took:?}");
        assert_eq!(got.status, 504);
        let expected = "tulle; error=http_response_timeout; details=\"the timeout request=800ms is over\"";
        assert_eq!(got.header("proxy-status"), expected);
        let told: u64 =
            app.seen()[0].header("x-envoy-expected-rq-timeout-ms").expect("told").parse().expect("ms");
        assert!((1..=800).contains(&told), "{told}");
        let got = mesh.send(grpc()).await;
        assert_eq!(got.header("grpc-status"), "4");
    });
}

#[test]
fn the_callers_deadline_shrinks_on_its_way() {
    on_a_worker(async {
        let app = App::new(|_| Say::Nothing).await;
        let fields = [("content-type", "application/grpc"), ("grpc-timeout", "800m")];
        let got = Setup::new(&[app.address]).build().send(request(Method::POST, &fields, "")).await;
        assert_eq!(got.header("grpc-status"), "4");
        assert!(got.header("grpc-message").contains("grpc-timeout=800ms"), "{got:?}");
        let told = app.seen()[0].header("grpc-timeout").expect("told").to_owned();
        let micros: u64 = told.strip_suffix('u').expect("microseconds").parse().expect("a number");
        assert!(micros < 800_000, "{told}");
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_given_up_for_another() {
    on_a_worker(async {
        let app = App::new(|n| if n == 0 { Say::Nothing } else { Say::Ok("done") }).await;
        let mut setup = Setup::new(&[app.address]);
        let per_try_timeout = Some(Duration::from_secs(1));
        setup.forward().retry = Some(RetryPolicy { per_try_timeout, ..policy(RetryOn::GatewayError) });
        assert_eq!(setup.build().send(get()).await.status, 200);
        assert_eq!(app.seen().len(), 2);
    });
}

#[test]
fn a_limit_of_the_cluster_refuses_with_its_name_and_value() {
    on_a_worker(async {
        let app = App::new(|_| Say::Nothing).await;
        let mut setup = Setup::new(&[app.address]);
        setup.cluster.limits.max_requests = Some(1);
        let mesh = setup.build();
        let held = mesh.proxy.clone();
        let first = tokio::task::spawn_local(async move {
            let interim = crate::http::server::Interim::default();
            crate::http::server::Handler::handle(&*held, get(), interim).await;
        });
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        let got = mesh.send(get()).await;
        assert_eq!((got.status.as_u16(), got.header("x-envoy-overloaded")), (503, "true"));
        assert!(got.header("proxy-status").contains("maxConcurrentRequests=1"), "{got:?}");
        first.abort();
        let _ = first.await;
        assert_eq!(mesh.cluster.state.in_flight(crate::balance::Limit::Requests), 0);
    });
}
