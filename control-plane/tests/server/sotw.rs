//! The state-of-the-world protocol, over real sockets, in the order in which gRPC speaks it.

use super::support::ControlPlane;
use tulle_control_plane::xds::Kind::{Cluster, Endpoint, Listener, Route};

const CART: &str = "cart.shop.svc.cluster.local:80";

#[tokio::test]
async fn listeners_and_clusters_are_sent_whole_and_the_rest_in_parts() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Listener, CART, "cart"), (Listener, "b:80", "b"), (Route, "r", "r"), (Route, "s", "s")]);
    let mut stream = plane.sotw("shop", "web").await;

    stream.request(Listener, &[CART, "b:80"], "", "").await;
    let (listeners, content) = stream.next().await;
    assert_eq!(content, ["b", "cart"]);
    stream.ack(Listener, &[CART, "b:80"], &listeners).await;
    stream.request(Route, &["r", "s"], "", "").await;
    let (routes, content) = stream.next().await;
    assert_eq!(content, ["r", "s"]);
    stream.ack(Route, &["r", "s"], &routes).await;
    stream.silent().await;

    plane.put_all(&[(Listener, CART, "cart, changed"), (Route, "s", "s, changed")]);
    assert_eq!(stream.next().await.1, ["b", "cart, changed"], "whole");
    let (routes, content) = stream.next().await;
    assert_eq!(content, ["s, changed"], "in parts");

    // Another name is answered for alone.
    stream.ack(Route, &["r", "s", "t"], &routes).await;
    let (missing, content) = stream.next().await;
    assert!(content.is_empty());
    assert_eq!(missing.resource_errors[0].resource_name.as_ref().unwrap().name, "t");
    plane.put(Route, "t", "t");
    assert_eq!(stream.next().await.1, ["t"]);
    plane.stop().await;
}

#[tokio::test]
async fn a_missing_listener_is_answered_at_once_and_absence_means_deletion() {
    let plane = ControlPlane::start().await;
    let mut stream = plane.sotw("shop", "web").await;
    stream.request(Listener, &[CART], "", "").await;
    let (response, content) = stream.next().await;
    assert!(content.is_empty(), "so that the client fails fast");
    stream.ack(Listener, &[CART], &response).await;
    plane.put(Listener, CART, "cart");
    let (response, content) = stream.next().await;
    assert_eq!(content, ["cart"]);
    stream.ack(Listener, &[CART], &response).await;
    plane.remove_all(&[(Listener, CART)]);
    assert!(stream.next().await.1.is_empty());
    plane.stop().await;
}

#[tokio::test]
async fn no_names_after_some_means_none() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Cluster, "a", "a"), (Cluster, "b", "b"), (Endpoint, "a", "ea")]);
    let mut all = plane.sotw("shop", "web").await;
    all.request(Cluster, &[], "", "").await;
    assert_eq!(all.next().await.1, ["a", "b"], "no names at first means all");

    let mut some = plane.sotw("shop", "web").await;
    some.request(Cluster, &["a"], "", "").await;
    let (clusters, content) = some.next().await;
    assert_eq!(content, ["a"]);
    some.request(Endpoint, &["a"], "", "").await;
    let (endpoints, content) = some.next().await;
    assert_eq!(content, ["ea"]);
    some.ack(Endpoint, &[], &endpoints).await;
    some.ack(Cluster, &[], &clusters).await;
    some.silent().await;
    // The same nonce again, and an answer all the same: gRPC asks so when the cluster is back.
    some.ack(Endpoint, &["a"], &endpoints).await;
    assert_eq!(some.next().await.1, ["ea"]);
    plane.stop().await;
}

#[tokio::test]
async fn a_request_from_before_the_last_response_is_ignored() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Endpoint, "a", "1"), (Endpoint, "b", "1")]);
    let mut stream = plane.sotw("shop", "web").await;
    stream.request(Endpoint, &["a"], "", "").await;
    let (first, _) = stream.next().await;
    plane.put(Endpoint, "a", "2");
    let (second, _) = stream.next().await;
    stream.request(Endpoint, &["b"], &first.nonce, &first.version_info).await;
    stream.silent().await;
    stream.ack(Endpoint, &["a", "b"], &second).await;
    assert_eq!(stream.next().await.1, ["1"]);
    plane.stop().await;
}

#[tokio::test]
async fn endpoints_follow_their_cluster() {
    let plane = ControlPlane::start().await;
    plane.put_all(&[(Cluster, "a", "1"), (Cluster, "b", "1"), (Endpoint, "a", "ea"), (Endpoint, "b", "eb")]);
    let mut stream = plane.sotw("shop", "web").await;
    stream.request(Cluster, &["a", "b"], "", "").await;
    stream.next().await;
    stream.request(Endpoint, &["a", "b"], "", "").await;
    stream.next().await;
    plane.put(Cluster, "a", "2");
    let (response, content) = stream.next().await;
    assert_eq!((response.type_url.as_str(), content.len()), (Cluster.type_url(), 2));
    let (response, content) = stream.next().await;
    assert_eq!((response.type_url.as_str(), content), (Endpoint.type_url(), vec!["ea".to_owned()]));
    stream.silent().await;
    plane.stop().await;
}
