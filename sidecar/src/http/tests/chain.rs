//! Sidecars in a row, over mesh TLS.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, Version};
use tokio::net::TcpListener;
use tulle_mesh::model::{LoadBalancer, RetryBudget, RetryOn, RetryPolicy, UpstreamProtocol, UpstreamTls};

use super::app::{App, Say, status};
use super::harness::{Mesh, Setup, endpoint, get, post, request};
use crate::http::body::Body;
use crate::http::server::{Handler, Interim, Reply, ServerOptions, serve_http1};
use crate::io::Stream;
use crate::listener::testing::{on_a_worker, refusing};
use crate::tls::Material;
use crate::tls::testing::Authority;
use crate::worker::drain::Drain;

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const CART: &str = "spiffe://td/ns/shop/sa/cart";

/// The sidecar of `web`, which calls those of `cart` at `peers`.
fn caller(authority: &Authority, peers: &[SocketAddr], protocol: UpstreamProtocol) -> Mesh {
    calling(authority, peers, protocol).build()
}

fn calling(authority: &Authority, peers: &[SocketAddr], protocol: UpstreamProtocol) -> Setup {
    let mut setup = Setup::new(&[]);
    setup.tls = Some(authority.material(WEB));
    setup.cluster.protocol = protocol;
    setup.cluster.load_balancer = LoadBalancer::RoundRobin;
    setup.cluster.tls = Some(UpstreamTls {
        sni: "outbound_.80_._.cart.shop".into(),
        subject_alt_names: Vec::new(),
        alpn: Vec::new(),
        only_meshed_endpoints: false,
    });
    setup.endpoints = peers
        .iter()
        .map(|peer| {
            let mut endpoint = endpoint(peer);
            endpoint.meshed = true;
            endpoint.identity = Some(CART.parse().expect("valid"));
            endpoint
        })
        .collect();
    setup
}

/// A sidecar of `cart` in front of `app`.
async fn callee(material: &Arc<Material>, app: SocketAddr) -> SocketAddr {
    let mut setup = Setup::inbound(app);
    setup.cluster.protocol = UpstreamProtocol::Http1;
    setup.build().serve(material.clone()).await
}

#[test]
fn a_request_crosses_two_sidecars_and_the_application_learns_who_sent_it() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let app = App::new(|_| Say::Ok("hello")).await;
        let peer = callee(&authority.material(CART), app.address).await;
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let mesh = caller(&authority, &[peer], protocol);
            let got = mesh.send(post("pay")).await;
            assert_eq!((got.status.as_u16(), got.body), (200, Ok("hello".into())), "{protocol:?}");
            let counted = mesh.metric("http_client_request_duration_seconds_count", &["shop/cart"]);
            assert_eq!(counted, 1, "under the identity that the peer proved");
        }
        for seen in app.seen() {
            assert_eq!(seen.body, b"pay");
            let client = format!("URI={WEB}");
            assert_eq!(seen.header("x-forwarded-client-cert"), Some(client.as_str()));
            assert_eq!((seen.header("via"), seen.header("host")), (None, Some("cart.shop")));
        }
    });
}

#[test]
fn a_post_to_a_sidecar_whose_application_is_gone_goes_to_another() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let material = authority.material(CART);
        let app = App::new(|_| Say::Ok("")).await;
        let peers = [callee(&material, refusing().await).await, callee(&material, app.address).await];
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let before = app.seen().len();
            let mesh = caller(&authority, &peers, protocol);
            for _ in 0..10 {
                let got = mesh.send(post("pay")).await;
                assert_eq!((got.status.as_u16(), got.header("x-tulle-outcome")), (200, ""), "{protocol:?}");
            }
            assert_eq!(app.seen().len() - before, 10, "each once");
        }
    });
}

#[test]
fn over_both_hops_a_post_reaches_the_application_at_most_once() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let material = authority.material(CART);
        for say in [Say::Reset, Say::Close, status(503)] {
            let app = App::new({
                let say = say.clone();
                move |_| say.clone()
            })
            .await;
            let peers = [callee(&material, app.address).await, callee(&material, app.address).await];
            let mesh = caller(&authority, &peers, UpstreamProtocol::Http1);
            let got = mesh.send(post("pay")).await;
            assert_eq!((got.status.as_u16(), got.header("x-tulle-outcome")), (503, ""));
            assert_eq!(app.seen().len(), 1, "{say:?}");
        }
    });
}

#[test]
fn a_get_is_tried_again_by_the_callers_sidecar_alone() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let app = App::new(|n| if n == 0 { Say::Reset } else { Say::Ok("") }).await;
        let peer = callee(&authority.material(CART), app.address).await;
        let mesh = caller(&authority, &[peer], UpstreamProtocol::Http1);
        assert_eq!(mesh.send(get()).await.status, 200);
        assert_eq!(app.seen().len(), 2);
        assert_eq!(app.seen()[1].header("x-envoy-attempt-count"), Some("2"));
        assert_eq!(mesh.metric("tulle_upstream_retries_total", &["cart"]), 1);
    });
}

/// An application that asks the next one, and passes on what it is told about the trace but nothing else.
struct Asks(Mesh);

impl Handler for Asks {
    type Body = Body;

    async fn handle(&self, asked: Request<Body>, _interim: Interim) -> Reply<Body> {
        let mut request = get();
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = asked.headers().get(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.0.send(request).await.status;
        Reply { response, tunnel: None, close: false }
    }
}

/// A workload whose application asks `next`: the address of its sidecar.
async fn asking(authority: &Authority, next: Setup) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let app = listener.local_addr().expect("bound");
    let asks = Rc::new(Asks(next.build()));
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let asks = asks.clone();
            tokio::task::spawn_local(async move {
                let (options, drain) = (ServerOptions::default(), Drain::default());
                serve_http1(Stream::from(socket), &*asks, &options, &drain).await;
            });
        }
    });
    callee(&authority.material(CART), app).await
}

#[test]
fn three_hops_that_all_may_try_again_add_a_fifth_to_the_load_in_all() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let eager = RetryPolicy {
            headers: Vec::new(),
            request_headers: Vec::new(),
            rate_limited: None,
            on: vec![RetryOn::ServerError],
            statuses: Vec::new(),
            attempts: 3,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            backoff: Duration::from_micros(1),
            max_backoff: Duration::from_micros(1),
        };
        // With a policy at each hop, an application's failures are tried again; by default, those the mesh sees.
        for (policy, say) in [(Some(eager), status(503)), (None, Say::Reset)] {
            let failing = App::new({
                let say = say.clone();
                move |_| say.clone()
            })
            .await;
            let hop = |peer: SocketAddr| {
                let mut setup = calling(&authority, &[peer], UpstreamProtocol::Http1);
                setup.forward().retry.clone_from(&policy);
                // Without the retries that are free at low load, so that a short test sees the share. The window is
                // longer than the test.
                let share =
                    RetryBudget { percent: 20.0, min_per_second: 0, interval: Duration::from_secs(600) };
                setup.cluster.limits.retry_budget = Some(share);
                setup
            };
            let c = callee(&authority.material(CART), failing.address).await;
            let b = asking(&authority, hop(c)).await;
            let a = asking(&authority, hop(b)).await;
            let client = hop(a).build();
            let requests = 300;
            for n in 1..=requests {
                let trace = format!("00-{n:032x}-00000000000000a1-01");
                let got = client.send(request(Method::GET, &[("traceparent", &trace)], "")).await;
                assert_eq!(got.status, 503);
            }
            let reached = failing.seen().len();
            assert!(reached > requests * 118 / 100, "the budget is of use: {reached}, {say:?}");
            // Each hop may be ahead of the others by the one retry that it decides on first.
            assert!(reached <= requests * 120 / 100 + 3, "{reached}, {say:?}");
        }
    });
}

#[test]
fn another_workload_on_the_address_never_gets_the_request() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let app = App::new(|_| Say::Ok("")).await;
        let other = callee(&authority.material("spiffe://td/ns/shop/sa/other"), app.address).await;
        let right = App::new(|_| Say::Ok("")).await;
        let peer = callee(&authority.material(CART), right.address).await;
        let got = caller(&authority, &[other], UpstreamProtocol::Http1).send(post("pay")).await;
        assert_eq!(got.status, 503);
        assert!(got.header("proxy-status").contains("tls_certificate_error"), "{got:?}");
        let mesh = caller(&authority, &[other, peer], UpstreamProtocol::Http1);
        for _ in 0..6 {
            assert_eq!(mesh.send(post("pay")).await.status, 200);
        }
        assert_eq!((app.seen().len(), right.seen().len()), (0, 6));
    });
}

#[test]
fn a_request_over_http2_crosses_as_it_is() {
    on_a_worker(async {
        let authority = Authority::new("td");
        let app = App::new(|_| Say::Ok("hello")).await;
        let peer = callee(&authority.material(CART), app.address).await;
        let mesh = caller(&authority, &[peer], UpstreamProtocol::Downstream);
        let mut over_http2 = request(Method::POST, &[("cookie", "a=1"), ("cookie", "b=2")], "x");
        *over_http2.version_mut() = Version::HTTP_2;
        over_http2.headers_mut().remove("host");
        *over_http2.uri_mut() = "http://cart.shop/x".parse().expect("valid");
        assert_eq!(mesh.send(over_http2).await.body, Ok("hello".into()));
    });
}
