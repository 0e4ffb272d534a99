//! The incremental protocol, over real sockets.

use std::time::Duration;

use super::support::{ControlPlane, DeltaStream, eventually};
use tonic::Code;
use tulle_control_plane::xds::Kind::{Cluster, Endpoint, Listener, Route};
use tulle_control_plane::xds::server::Limits;

const CART: &str = "cart.shop.svc.cluster.local:80";
const CLUSTER: &str = "outbound|80||cart.shop.svc.cluster.local";

#[tokio::test]
async fn a_name_and_an_alias_get_the_same_resource() {
    let plane = ControlPlane::start().await;
    plane.put(Listener, CART, "cart");
    plane.alias(Listener, "shop", "10.0.0.1:80", CART);
    let mut stream = plane.delta("shop", "web").await;

    stream.subscribe(Listener, &[CART]).await;
    let (response, names, removed) = stream.next_names().await;
    assert_eq!((names, removed), (vec![CART.into()], vec![]));
    assert_eq!(response.type_url, Listener.type_url());
    assert_eq!(response.resources[0].resource.as_ref().unwrap().value, b"cart");

    stream.subscribe(Listener, &["10.0.0.1:80"]).await;
    let (_, names, _) = stream.next_names().await;
    assert_eq!(names, [format!("{CART} [\"10.0.0.1:80\"]")]);

    plane.put(Listener, CART, "cart, changed");
    let (response, names, _) = stream.next_names().await;
    assert_eq!(names, [format!("{CART} [\"10.0.0.1:80\"]")], "one copy for both names");
    assert_eq!(response.resources[0].resource.as_ref().unwrap().value, b"cart, changed");
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn an_alias_is_looked_up_in_the_namespace_that_the_caller_proved() {
    let plane = ControlPlane::start().await;
    plane.put(Listener, CART, "cart");
    plane.alias(Listener, "shop", "cart:80", CART);
    let mut inside = plane.delta("shop", "web").await;
    inside.subscribe(Listener, &["cart:80"]).await;
    assert_eq!(inside.next_names().await.1, [format!("{CART} [\"cart:80\"]")]);
    let mut outside = plane.delta("other", "web").await;
    outside.subscribe(Listener, &["cart:80"]).await;
    assert_eq!(outside.next_names().await.2, ["cart:80"]);
    plane.stop().await;
}

#[tokio::test]
async fn an_unknown_name_is_answered_at_once_and_pushed_when_it_appears() {
    let plane = ControlPlane::start().await;
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Listener, &["10.0.0.1:80", CART]).await;
    let (response, names, removed) = stream.next_names().await;
    assert!(names.is_empty());
    assert_eq!(removed, ["10.0.0.1:80", CART]);
    let error = response.resource_errors[1].error_detail.as_ref().unwrap();
    assert_eq!(error.code, Code::NotFound as i32);
    assert!(error.message.contains(CART), "{}", error.message);

    plane.put(Listener, CART, "cart");
    assert_eq!(stream.next_names().await.1, [CART]);
    plane.alias(Listener, "shop", "10.0.0.1:80", CART);
    assert_eq!(stream.next_names().await.1, [format!("{CART} [\"10.0.0.1:80\"]")]);

    plane.remove_all(&[(Listener, CART)]);
    let (_, names, removed) = stream.next_names().await;
    assert!(names.is_empty());
    assert_eq!(removed, ["10.0.0.1:80", CART], "by every name that was asked for");
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn asking_again_is_always_answered() {
    let plane = ControlPlane::start().await;
    plane.put(Route, "r", "routes");
    let mut stream = plane.delta("shop", "web").await;
    for _ in 0..3 {
        stream.subscribe(Route, &["r"]).await;
        assert_eq!(stream.next_names().await.1, ["r"]);
    }
    stream.unsubscribe(Route, &["r"]).await;
    let subscribed = || plane.proxies.status()[0].types["RDS"].subscribed;
    eventually(|| subscribed() == 0, "it is unsubscribed").await;
    plane.put(Route, "r", "changed");
    stream.silent().await;
    stream.subscribe(Route, &["gone"]).await;
    assert_eq!(stream.next_names().await.2, ["gone"]);
    stream.subscribe(Route, &["gone"]).await;
    assert_eq!(stream.next_names().await.2, ["gone"]);
    plane.stop().await;
}

#[tokio::test]
async fn an_alias_that_moves_brings_the_new_resource_and_takes_the_old() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Listener, "a:80", "a"), (Listener, "b:80", "b")]);
    plane.alias(Listener, "shop", "10.0.0.1:80", "a:80");
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Listener, &["10.0.0.1:80"]).await;
    assert_eq!(stream.next_names().await.1, ["a:80 [\"10.0.0.1:80\"]"]);
    plane.alias(Listener, "shop", "10.0.0.1:80", "b:80");
    let (_, names, removed) = stream.next_names().await;
    assert_eq!(names, ["b:80 [\"10.0.0.1:80\"]"]);
    assert_eq!(removed, ["a:80"]);
    plane.put(Listener, "a:80", "nobody asked");
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn only_what_changed_goes_only_to_who_subscribed() {
    let plane = ControlPlane::start().await;
    let names: Vec<_> = (0..50).map(|i| format!("cluster-{i}")).collect();
    for name in &names {
        plane.put(Endpoint, name, "one");
    }
    let mut reader = plane.delta("shop", "web").await;
    reader.subscribe(Endpoint, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(reader.next_names().await.1.len(), 50);
    let mut other = plane.delta("shop", "cart").await;
    other.subscribe(Endpoint, &["cluster-1"]).await;
    other.next().await;

    plane.put_all(&[(Endpoint, "cluster-7", "two"), (Endpoint, "cluster-9", "one")]);
    assert_eq!(reader.next_names().await.1, ["cluster-7"], "cluster-9 has the same bytes as before");
    reader.silent().await;
    other.silent().await;
    let text = plane.metrics.text().unwrap();
    assert!(text.contains("tulle_control_plane_xds_resources_total{type=\"EDS\"} 52"), "{text}");
    assert!(text.contains("tulle_control_plane_xds_pushes_total{type=\"EDS\"} 3"), "{text}");
    plane.stop().await;
}

#[tokio::test]
async fn who_reconnects_with_what_it_holds_gets_nothing_but_news() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Listener, CART, "cart"), (Listener, "b:80", "b"), (Listener, "c:80", "c")]);
    plane.alias(Listener, "shop", "10.0.0.1:80", CART);
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Listener, &["10.0.0.1:80", "b:80", "c:80"]).await;
    let response = stream.next().await;
    let version = |name: &str| {
        response.resources.iter().find(|resource| resource.name == name).unwrap().version.clone()
    };
    let (cart, b, c) = (version(CART), version("b:80"), version("c:80"));
    drop(stream);

    let mut stream = plane.delta("shop", "web").await;
    let held = [(CART, cart.as_str()), ("b:80", &b), ("c:80", &c)];
    stream.resume(Listener, &[CART, "b:80", "c:80"], &held).await;
    stream.silent().await;
    drop(stream);

    // What an alias means can't be told from what is held, but for who says which version it meant.
    let mut stream = plane.delta("shop", "web").await;
    stream.resume(Listener, &["10.0.0.1:80", "b:80", "c:80"], &held).await;
    assert_eq!(stream.next_names().await.1, [format!("{CART} [\"10.0.0.1:80\"]")]);
    stream.silent().await;
    drop(stream);
    let told = [&held[..], &[("10.0.0.1:80", cart.as_str())]].concat();
    let mut stream = plane.delta("shop", "web").await;
    stream.resume(Listener, &["10.0.0.1:80", "b:80", "c:80"], &told).await;
    stream.silent().await;
    drop(stream);
    plane.alias(Listener, "shop", "10.0.0.1:80", "b:80");
    let mut stream = plane.delta("shop", "web").await;
    stream.resume(Listener, &["10.0.0.1:80", "b:80", "c:80"], &told).await;
    assert_eq!(stream.next_names().await.1, ["b:80 [\"10.0.0.1:80\"]"]);
    stream.silent().await;
    drop(stream);
    plane.alias(Listener, "shop", "10.0.0.1:80", CART);

    plane.put(Listener, "b:80", "b, changed");
    plane.remove_all(&[(Listener, "c:80")]);
    let mut stream = plane.delta("shop", "web").await;
    stream.resume(Listener, &[CART, "b:80", "c:80"], &held).await;
    let (_, names, removed) = stream.next_names().await;
    assert_eq!((names, removed), (vec!["b:80".into()], vec!["c:80".into()]));
    stream.silent().await;
    drop(stream);

    // What is held but no longer asked for is told when it is gone, and else left alone.
    let mut stream = plane.delta("shop", "web").await;
    stream.resume(Listener, &["b:80"], &held).await;
    let (_, names, removed) = stream.next_names().await;
    assert_eq!((names, removed), (vec!["b:80".into()], vec!["c:80".into()]));
    plane.put(Listener, CART, "changed");
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn a_rejection_is_recorded_and_not_sent_again_until_it_changes() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Cluster, "good", "1"), (Cluster, "bad", "1")]);
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Cluster, &["good", "bad"]).await;
    let response = stream.next().await;
    stream.nack(&response, "bad: lb_policy 99 is unknown").await;
    let status = || plane.proxies.status().remove(0);
    eventually(|| !status().types["CDS"].nacked.is_empty(), "the rejection is recorded").await;
    let cds = status().types["CDS"].clone();
    assert_eq!(cds.nacked.len(), 1, "only the resource that the reason names");
    assert_eq!(cds.nacked[0].name, "bad");
    assert_eq!(cds.nacked[0].reason, "bad: lb_policy 99 is unknown");
    assert!(!cds.synced && !status().synced);
    assert_eq!(status().identity, "spiffe://cluster.local/ns/shop/sa/web");

    // The same bytes again are no news; another resource is sent without the rejected one.
    plane.put_all(&[(Cluster, "bad", "1"), (Cluster, "good", "2")]);
    let (response, names, _) = stream.next_names().await;
    assert_eq!(names, ["good"]);
    stream.ack(&response).await;
    eventually(|| status().types["CDS"].acked.is_some(), "the acknowledgement is recorded").await;
    assert_eq!(status().types["CDS"].nacked[0].name, "bad", "it stays rejected");

    plane.put(Cluster, "bad", "2");
    let (response, names, _) = stream.next_names().await;
    assert_eq!(names, ["bad"]);
    stream.ack(&response).await;
    eventually(|| status().synced, "all is well").await;
    assert!(plane.metrics.text().unwrap().contains("tulle_control_plane_xds_nacks_total{type=\"CDS\"} 1"));
    plane.stop().await;
}

#[tokio::test]
async fn a_change_is_pushed_in_the_order_make_before_break() {
    let plane = ControlPlane::start().await;
    let old = [(Cluster, "old"), (Endpoint, "old")];
    plane.put_all(&[(Cluster, "old", "1"), (Endpoint, "old", "1"), (Listener, CART, "1"), (Route, "r", "1")]);
    let mut stream = plane.delta("shop", "web").await;
    for (kind, names) in
        [(Listener, [CART, "x"]), (Route, ["r", "x"]), (Endpoint, ["old", "new"]), (Cluster, ["old", "new"])]
    {
        stream.subscribe(kind, &names).await;
    }
    stream.drain().await;
    // One note for all, as the world sends it.
    plane.change(
        &[(Cluster, "new", "2"), (Endpoint, "new", "2"), (Listener, CART, "2"), (Route, "r", "2")],
        &old,
    );
    let mut order = Vec::new();
    for _ in 0..6 {
        let (response, names, removed) = stream.next_names().await;
        let kind = response.type_url.rsplit('.').next().unwrap().to_owned();
        order.push((kind, names.len(), removed.len()));
    }
    let order: Vec<_> =
        order.iter().map(|(kind, names, removed)| (kind.as_str(), *names, *removed)).collect();
    assert_eq!(
        order,
        [
            ("Cluster", 1, 0),
            ("ClusterLoadAssignment", 1, 0),
            ("Listener", 1, 0),
            ("RouteConfiguration", 1, 0),
            ("ClusterLoadAssignment", 0, 1),
            ("Cluster", 0, 1),
        ]
    );
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn endpoints_follow_their_cluster_even_when_they_did_not_change() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Cluster, CLUSTER, "1"), (Endpoint, CLUSTER, "1")]);
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Cluster, &[CLUSTER]).await;
    stream.next().await;
    stream.subscribe(Endpoint, &[CLUSTER]).await;
    let version = stream.next().await.resources[0].version.clone();
    plane.put(Cluster, CLUSTER, "2");
    assert_eq!(stream.next().await.type_url, Cluster.type_url());
    assert_eq!(stream.next().await.type_url, Endpoint.type_url());
    drop(stream);

    // On a new stream too: the cluster is sent, so the endpoints follow, though they are held already.
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Cluster, &[CLUSTER]).await;
    stream.next().await;
    stream.resume(Endpoint, &[CLUSTER], &[(CLUSTER, &version)]).await;
    assert_eq!(stream.next_names().await.1, [CLUSTER]);
    plane.stop().await;
}

#[tokio::test]
async fn the_wildcard_is_for_listeners_and_clusters_only() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Cluster, "a", "1"), (Cluster, "b", "1"), (Endpoint, "a", "1")]);
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Cluster, &[]).await;
    assert_eq!(stream.next_names().await.1, ["a", "b"]);
    stream.subscribe(Endpoint, &[]).await;
    stream.silent().await;
    plane.put(Cluster, "c", "1");
    assert_eq!(stream.next_names().await.1, ["c"]);
    plane.remove_all(&[(Cluster, "a")]);
    assert_eq!(stream.next_names().await.2, ["a"]);
    stream.subscribe(Listener, &[]).await;
    let (response, names, removed) = stream.next_names().await;
    assert_eq!(response.type_url, Listener.type_url(), "an empty answer is an answer");
    assert!(names.is_empty() && removed.is_empty());
    drop(stream);

    let mut stream = plane.delta("shop", "web").await;
    let nothing = envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest {
        type_url: Cluster.type_url().into(),
        resource_names_subscribe: vec!["*".into()],
        resource_names_unsubscribe: vec!["*".into()],
        ..Default::default()
    };
    stream.send(nothing).await;
    stream.silent().await;
    stream.subscribe(Cluster, &["*", "missing"]).await;
    let (_, names, _) = stream.next_names().await;
    assert_eq!(names, ["b", "c"]);
    assert_eq!(stream.next_names().await.2, ["missing"]);
    plane.stop().await;
}

#[tokio::test]
async fn an_inbound_listener_is_only_for_its_own_workload() {
    let plane = ControlPlane::start().await;
    let name = "tulle/inbound/10.0.0.1:8080";
    plane.put(Listener, name, "cart's own");
    plane.owned_by(name, "spiffe://cluster.local/ns/shop/sa/cart");
    let mut owner = plane.delta("shop", "cart").await;
    owner.subscribe(Listener, &[name]).await;
    assert_eq!(owner.next_names().await.1, [name]);
    let mut stranger = plane.delta("shop", "web").await;
    stranger.subscribe(Listener, &[name]).await;
    assert_eq!(stranger.next_names().await.2, [name]);
    plane.put(Listener, name, "changed");
    assert_eq!(owner.next_names().await.1, [name]);
    stranger.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn versions_go_through_to_the_reader_only_once_when_it_is_slow() {
    let plane = ControlPlane::start().await;
    // Larger than what the transport takes in advance, so that responses pile up behind it.
    let big = |i: usize| format!("{i} {}", "x".repeat(512 * 1024));
    plane.put(Route, "r", &big(0));
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Route, &["r"]).await;
    stream.next().await;
    for i in 1..=200 {
        plane.put(Route, "r", &big(i));
    }
    let mut responses = 0;
    loop {
        let response = stream.next().await;
        responses += 1;
        let value = &response.resources[0].resource.as_ref().unwrap().value;
        if value.starts_with(b"200 ") {
            break;
        }
    }
    assert!(responses < 100, "{responses} of 200 versions were sent");
    stream.silent().await;
    plane.stop().await;
}

#[tokio::test]
async fn who_proves_nothing_gets_nothing() {
    let plane = ControlPlane::start().await;
    let refused = DeltaStream::open(plane.connect().await, None).await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("join token"), "{}", refused.message());
    plane.stop().await;
}

#[tokio::test]
async fn a_stream_ends_in_time_and_there_is_a_limit_to_how_many() {
    let limits = Limits { max_age: Duration::from_millis(400), max_streams: 1 };
    let plane = ControlPlane::start_with(limits).await;
    let channel = plane.connect().await;
    let token = plane.token("shop", "web");
    let mut stream = DeltaStream::open(channel.clone(), Some(&token)).await.unwrap();
    let refused = DeltaStream::open(channel.clone(), Some(&token)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    stream.subscribe(Route, &["r"]).await;
    assert_eq!(stream.next_names().await.2, ["r"]);
    assert_eq!(plane.proxies.len(), 1);
    assert!(stream.end().await.is_none(), "it ends without an error");
    eventually(|| plane.proxies.is_empty(), "it is no longer listed").await;
    DeltaStream::open(channel, Some(&token)).await.unwrap();
    plane.stop().await;
}
