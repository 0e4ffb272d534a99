//! What crosses the sidecar, and what it changes.

use http::{HeaderName, HeaderValue, Method};
use tulle_mesh::model::{
    HeaderMutation, HeaderMutations, HeaderOp, HostRewrite, Mirror, PathMatch, PathRewrite, PerMillion,
};

use super::app::{App, Say};
use super::harness::{Setup, get, post, request};
use crate::http::body::Body;
use crate::listener::testing::on_a_worker;

fn set(name: &'static str, value: &'static str) -> HeaderMutations {
    let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value).into());
    HeaderMutations { remove: Vec::new(), change: vec![HeaderMutation { name, value, op: HeaderOp::Set }] }
}

#[test]
fn only_what_is_for_the_application_reaches_it() {
    on_a_worker(async {
        let app = App::new(|_| {
            Say::Raw(
                "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nx-tulle-outcome: not-processed\r\n\
                 server: mine\r\nproxy-status: mine\r\ncontent-length: 2\r\n\r\nhi"
                    .into(),
            )
        })
        .await;
        let fields = [
            ("connection", "x-private"),
            ("x-private", "1"),
            ("proxy-authorization", "Basic x"),
            ("x-forwarded-client-cert", "URI=spiffe://td/ns/a/sa/root"),
            ("x-app", "2"),
        ];
        let got = Setup::new(&[app.address]).build().send(request(Method::GET, &fields, "")).await;
        let seen = &app.seen()[0];
        assert_eq!(seen.line, "GET /x?y=1 HTTP/1.1");
        assert_eq!((seen.header("host"), seen.header("x-app")), (Some("cart.shop"), Some("2")));
        for gone in ["x-private", "proxy-authorization", "x-forwarded-client-cert"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
        assert_eq!(seen.header("via"), Some("1.1 tulle"));
        assert!(seen.header("x-request-id").is_some_and(|id| id.len() == 36));
        // The application's answer passes as it is, but for what belongs to its connection or only to the mesh.
        assert_eq!((got.header("server"), got.header("proxy-status")), ("mine", "mine"));
        assert_eq!((got.header("x-hop"), got.header("x-tulle-outcome"), got.header("via")), ("", "", ""));
        assert_eq!(got.body, Ok("hi".into()));
    });
}

#[test]
fn the_application_learns_whom_its_client_proved_to_be() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mut setup = Setup::inbound(app.address);
        setup.identity = Some("spiffe://td/ns/shop/sa/web");
        let fields = [("x-forwarded-client-cert", "URI=spiffe://td/ns/a/sa/root"), ("via", "1.1 tulle")];
        assert_eq!(setup.build().send(request(Method::GET, &fields, "")).await.status, 200);
        let seen = &app.seen()[0];
        assert_eq!(seen.header("x-forwarded-client-cert"), Some("URI=spiffe://td/ns/shop/sa/web"));
        assert_eq!(seen.header("via"), None);
    });
}

#[test]
fn a_route_changes_path_host_and_headers() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mut setup = Setup::new(&[app.address]);
        setup.route.matches.path = PathMatch::Segments("/x".into());
        setup.forward().path_rewrite = Some(PathRewrite::Prefix("/v2".into()));
        setup.forward().host_rewrite = Some(HostRewrite::Literal("other.shop".into()));
        setup.forward().backends[0].request_headers = set("x-from", "backend");
        setup.route.request_headers = set("x-from", "route");
        setup.route.response_headers = set("x-answer", "route");
        let got = setup.build().send(get()).await;
        let seen = &app.seen()[0];
        assert_eq!((seen.line.as_str(), seen.header("host")), ("GET /v2?y=1 HTTP/1.1", Some("other.shop")));
        assert_eq!((seen.header("x-from"), got.header("x-answer")), (Some("route"), "route"));
    });
}

#[test]
fn a_mirror_gets_a_copy_and_its_answer_is_nobodys() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("mine")).await;
        let mirror = App::new(|_| Say::Ok("not this")).await;
        let mut setup = Setup::new(&[app.address]);
        setup.mirror = Some(mirror.address);
        setup.forward().mirrors = vec![Mirror::new("mirror", PerMillion::ALL)];
        let mesh = setup.build();
        assert_eq!(mesh.send(post("pay")).await.body, Ok("mine".into()));
        while mirror.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        let (seen, copy) = (&app.seen()[0], &mirror.seen()[0]);
        assert_eq!((&copy.line, &copy.body), (&seen.line, &b"pay".to_vec()));
        assert_eq!(copy.header("host"), Some("cart.shop"));
        assert_eq!(app.seen().len(), 1);
    });
}

#[test]
fn a_request_without_a_known_destination_gets_an_answer_that_says_so() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let mesh = Setup::new(&[app.address]).build();
        let mut lost = get();
        lost.headers_mut().insert("host", HeaderValue::from_static("nobody@nowhere"));
        let got = mesh.send(lost).await;
        assert_eq!(got.status, 400);
        assert!(got.header("proxy-status").starts_with("tulle; error=http_request_error"), "{got:?}");

        let mut round = get();
        for _ in 0..10 {
            round.headers_mut().append("via", HeaderValue::from_static("1.1 tulle"));
        }
        let got = mesh.send(round).await;
        assert_eq!(got.status, 502);
        assert!(got.header("proxy-status").contains("proxy_loop_detected"), "{got:?}");
        assert!(app.seen().is_empty());
    });
}

#[test]
fn a_destination_outside_the_mesh_is_reached_in_plaintext() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("outside")).await;
        let mesh = {
            let mut setup = Setup::new(&[]);
            setup.cluster.name = "cart".into();
            setup.build()
        };
        let name = format!("localhost:{}", app.address.port());
        let mut snapshot = crate::snapshot::Snapshot::default();
        snapshot.absent.insert(name.as_str().into());
        mesh.worker.install(snapshot.into());
        for _ in 0..2 {
            let mut request = get();
            request.headers_mut().insert("host", HeaderValue::from_str(&name).expect("valid"));
            assert_eq!(mesh.send(request).await.body, Ok("outside".into()));
        }
        assert_eq!(app.seen()[1].header("host"), Some(name.as_str()));
        let counted = mesh.metric("http_client_request_duration_seconds_count", &["passthrough"]);
        assert_eq!(counted, 2);
    });
}

#[test]
fn a_connect_opens_a_tunnel_and_is_for_the_forward_proxy_only() {
    on_a_worker(async {
        let app = App::new(|_| Say::Ok("")).await;
        let connect = || {
            let request = http::Request::builder().method(Method::CONNECT).uri("cart.shop:80");
            request.header("host", "cart.shop:80").body(Body::Empty).expect("valid")
        };
        let mesh = Setup::new(&[app.address]).build();
        let interim = crate::http::server::Interim::default();
        let reply = crate::http::server::Handler::handle(&*mesh.proxy, connect(), interim).await;
        assert_eq!(reply.response.status(), 200);
        assert!(reply.tunnel.is_some());
        let got = Setup::inbound(app.address).build().send(connect()).await;
        assert_eq!(got.status, 404, "no route is for it");
    });
}
