//! Two sidecars in a row, over mesh TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Version};
use tulle_mesh::model::{LoadBalancer, UpstreamProtocol, UpstreamTls};

use super::app::{App, Say, status};
use super::harness::{Mesh, Setup, endpoint, get, post, request};
use crate::listener::testing::{on_a_worker, refusing};
use crate::tls::Material;
use crate::tls::testing::Authority;

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const CART: &str = "spiffe://td/ns/shop/sa/cart";

/// The sidecar of `web`, which calls those of `cart` at `peers`.
fn caller(authority: &Authority, peers: &[SocketAddr], protocol: UpstreamProtocol) -> Mesh {
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
    setup.build()
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
