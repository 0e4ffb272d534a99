//! The control side against a scripted control plane.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use tokio::time::timeout;
use tulle_mesh::model::{
    Discovery, DnsFamily, HostPort, RouteSource, Secret, SecretValue, TrafficDirection, UpstreamTls,
};
use tulle_mesh::xds::{Kind, Resource};

use super::fixtures::*;
use super::testing::*;
use super::{Demand, Handle};
use crate::config;
use crate::snapshot::{ChainProtocol, Snapshot};

mod certificates;
mod failures;
mod timers;

pub(super) const STOCK: &str = "stock.shop.svc.cluster.local:80";
pub(super) const STOCK_CLUSTER: &str = "outbound|80||stock.shop.svc.cluster.local";
pub(super) const INBOUND: &str = "tulle/inbound/192.0.2.1:8080";

pub(super) fn demand(handle: &Handle, name: &str) {
    handle.demands.send(Demand { name: name.into() }).expect("the sidecar runs");
}

pub(super) fn stock_listener() -> Resource {
    let routes = RouteSource::Named(STOCK_CLUSTER.into());
    Resource::Listener(http_listener(STOCK, TrafficDirection::Outbound, routes))
}

pub(super) fn stock_routes() -> Resource {
    Resource::Route(routes(STOCK_CLUSTER, &[STOCK_CLUSTER]))
}

pub(super) fn stock_cluster() -> Resource {
    Resource::Cluster(cluster(STOCK_CLUSTER, Discovery::Eds(STOCK_CLUSTER.into())))
}

pub(super) fn stock_endpoints(addresses: &[[u8; 4]]) -> Resource {
    Resource::Endpoint(endpoints(STOCK_CLUSTER, addresses))
}

pub(super) fn inbound_listener() -> Resource {
    let routes = RouteSource::Inline(routes("inbound", &["inbound|8080||"]));
    Resource::Listener(http_listener(INBOUND, TrafficDirection::Inbound, routes))
}

/// All that a sidecar asks for when traffic goes to stock.
pub(super) fn shop() -> Vec<(Resource, Vec<&'static str>)> {
    vec![
        (stock_listener(), vec!["stock.shop:80", "10.0.0.1:80"]),
        (stock_routes(), vec![]),
        (stock_cluster(), vec![]),
        (stock_endpoints(&[[10, 1, 0, 1], [10, 1, 0, 2]]), vec![]),
        (inbound_listener(), vec![]),
    ]
}

/// The number of endpoints behind the first route of an outbound listener.
pub(super) fn endpoints_of(snapshot: &Snapshot, name: &str) -> Option<usize> {
    let listener = snapshot.outbound.get(name)?;
    let ChainProtocol::Http(routes) = &listener.chains[0].protocol else { panic!("not HTTP") };
    let backend = routes.runtime[0].backends[0].cluster.as_ref()?;
    Some(backend.endpoints.iter().count())
}

#[tokio::test]
async fn a_listener_appears_with_all_that_it_needs_and_each_response_is_acknowledged_once() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        let first = stream.subscribes(Kind::Secret).await;
        let node = first.node.expect("the first message introduces the node");
        assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("shop/cart-1", "tulle-sidecar"));
        assert_eq!(stream.subscribes(Kind::Listener).await.resource_names_subscribe, [INBOUND]);

        demand(&handle, "stock.shop:80");
        let request = stream.subscribes(Kind::Listener).await;
        assert_eq!(request.resource_names_subscribe, ["stock.shop:80"]);
        assert!(request.node.is_none());
        let listener = stream.send(&[stock_listener()], &["stock.shop:80"]).await;
        assert_eq!(stream.subscribes(Kind::Route).await.resource_names_subscribe, [STOCK_CLUSTER]);
        let table = stream.send(&[stock_routes()], &[]).await;
        assert_eq!(stream.subscribes(Kind::Cluster).await.resource_names_subscribe, [STOCK_CLUSTER]);
        let cluster = stream.send(&[stock_cluster()], &[]).await;
        assert_eq!(stream.subscribes(Kind::Endpoint).await.resource_names_subscribe, [STOCK_CLUSTER]);
        assert_eq!(stream.answers(&cluster).await, None);
        assert!(handle.snapshots.borrow().outbound.is_empty(), "in force before its endpoints are known");

        let assignment = stream.send(&[stock_endpoints(&[[10, 1, 0, 1], [10, 1, 0, 2]])], &[]).await;
        let now = snapshot(&handle, |now| now.outbound.contains_key("stock.shop:80")).await;
        assert!(now.outbound.contains_key(STOCK));
        assert_eq!(endpoints_of(&now, STOCK), Some(2));
        for nonce in [&listener, &table, &assignment] {
            assert_eq!(stream.answers(nonce).await, None);
        }

        // An update changes what it must, and nothing else.
        let update = stream.send(&[stock_endpoints(&[[10, 1, 0, 3]])], &[]).await;
        let later = snapshot(&handle, |now| endpoints_of(now, STOCK) == Some(1)).await;
        assert_eq!(stream.answers(&update).await, None);
        let table = |snapshot: &Snapshot| match &snapshot.outbound[STOCK].chains[0].protocol {
            ChainProtocol::Http(routes) => Arc::clone(&routes.table),
            ChainProtocol::Tcp(_) => panic!("not HTTP"),
        };
        assert!(Arc::ptr_eq(&table(&now), &table(&later)), "the routes were compiled anew");
        assert!(Arc::ptr_eq(&now.clusters[STOCK_CLUSTER].state, &later.clusters[STOCK_CLUSTER].state));
        assert!(stream.left().is_empty(), "{:?}", stream.left());
    })
    .await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_absent_until_it_does() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, "stock.shop:80");
        stream.subscribes(Kind::Listener).await;
        let removed = stream.remove(Kind::Listener, &["stock.shop:80"]).await;
        snapshot(&handle, |now| now.absent.contains("stock.shop:80")).await;
        assert_eq!(stream.answers(&removed).await, None);

        for resource in [stock_listener(), stock_routes(), stock_cluster(), stock_endpoints(&[[10, 1, 0, 1]])]
        {
            if resource.kind() != Kind::Listener {
                stream.subscribes(resource.kind()).await;
            }
            stream.send(&[resource], &["stock.shop:80"]).await;
        }
        let now = snapshot(&handle, |now| now.outbound.contains_key("stock.shop:80")).await;
        assert!(!now.absent.contains("stock.shop:80"));

        // Routes, clusters and endpoints in use survive their removal; a listener does not.
        for kind in [Kind::Route, Kind::Cluster, Kind::Endpoint] {
            let nonce = stream.remove(kind, &[STOCK_CLUSTER]).await;
            assert_eq!(stream.answers(&nonce).await, None);
        }
        assert_eq!(endpoints_of(&handle.snapshots.borrow(), "stock.shop:80"), Some(1));
        stream.remove(Kind::Listener, &["stock.shop:80"]).await;
        let gone = snapshot(&handle, |now| now.absent.contains("stock.shop:80")).await;
        assert!(gone.outbound.is_empty());
        let dropped = stream.subscribes(Kind::Cluster).await;
        assert_eq!(dropped.resource_names_unsubscribe, [STOCK_CLUSTER]);
    })
    .await;
}

#[tokio::test]
async fn garbage_is_rejected_by_name_and_the_rest_is_taken() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        stream.subscribes(Kind::Listener).await;
        demand(&handle, STOCK);
        stream.subscribes(Kind::Listener).await;
        let mut garbage = wire(&inbound_listener());
        garbage.resource =
            Some(Any { type_url: Kind::Listener.type_url().into(), value: vec![0xff, 0x01, 0x02] });
        let nonce =
            stream.send_raw(Kind::Listener, vec![garbage.clone(), wire(&stock_listener())], &[]).await;
        let reason = stream.answers(&nonce).await.expect("a NACK");
        assert!(reason.contains(INBOUND) && !reason.contains(STOCK), "{reason}");
        stream.subscribes(Kind::Route).await;

        let status = handle.status().await.expect("runs");
        let listeners =
            status.types.iter().find(|kind| kind.type_url == Kind::Listener.type_url()).expect("listed");
        assert!(listeners.held.contains_key(STOCK));
        assert_eq!(listeners.rejected.keys().map(|name| &**name).collect::<Vec<_>>(), [INBOUND]);

        // A good version, then a bad one: the good one stays.
        let nonce = stream.send(&[inbound_listener()], &[]).await;
        assert_eq!(stream.answers(&nonce).await, None);
        snapshot(&handle, |now| now.inbound.len() == 1).await;
        let nonce = stream.send_raw(Kind::Listener, vec![garbage], &[]).await;
        assert!(stream.answers(&nonce).await.is_some());
        assert_eq!(handle.snapshots.borrow().inbound.len(), 1);

        // Two of one name, another name inside, another type inside, an unknown type.
        let nonce = stream.send(&[inbound_listener(), inbound_listener()], &[]).await;
        assert!(stream.answers(&nonce).await.expect("a NACK").contains("twice"));
        let mut liar = wire(&inbound_listener());
        liar.name = STOCK.into();
        let nonce = stream.send_raw(Kind::Listener, vec![liar], &[]).await;
        assert!(stream.answers(&nonce).await.expect("a NACK").contains("calls itself"));
        let nonce = stream.send_raw(Kind::Listener, vec![wire(&inbound_listener_as_cluster())], &[]).await;
        assert!(stream.answers(&nonce).await.expect("a NACK").contains("is of the type"));
        assert_eq!(handle.snapshots.borrow().inbound.len(), 1);
    })
    .await;
}

fn inbound_listener_as_cluster() -> Resource {
    Resource::Cluster(cluster(INBOUND, Discovery::OriginalDestination))
}

#[tokio::test]
async fn it_is_ready_with_a_certificate_and_its_inbound_listeners() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        let mut readiness = handle.readiness.clone();
        let certified = readiness.wait_for(|ready| ready.certificate);
        timeout(PATIENCE, certified).await.expect("in time").expect("runs");
        assert!(!readiness.borrow().configuration, "ready without the inbound listener");
        stream.subscribes(Kind::Listener).await;
        stream.send(&[inbound_listener()], &[]).await;
        timeout(PATIENCE, readiness.wait_for(|ready| ready.configuration))
            .await
            .expect("in time")
            .expect("runs");
        let now = snapshot(&handle, |now| now.tls.is_some()).await;
        let listener = &now.inbound[&"192.0.2.1:8080".parse().expect("valid")];
        let ChainProtocol::Http(routes) = &listener.chains[0].protocol else { panic!("not HTTP") };
        let app = routes.runtime[0].backends[0].cluster.as_ref().expect("the application");
        let addresses: Vec<_> = app.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(addresses, ["127.0.0.1:9"]);
    })
    .await;
}

#[tokio::test]
async fn with_capture_it_asks_for_its_addresses_and_reaches_itself_without_tls() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let own = ["10.1.0.1".parse().expect("valid"), "fd00::7".parse().expect("valid")];
    let capture = config::Capture { outbound: 1, inbound: 2, addresses: own.to_vec(), primary: own[0] };
    let config =
        config::Config { inbound: Vec::new(), capture: Some(capture), ..mesh.config(server.address) };
    let (control, handle) = mesh.sidecar(config);
    let captured = |ip: &str, clusters: &[&str]| {
        let routes = RouteSource::Inline(routes("inbound", clusters));
        let name = format!("tulle/inbound/{ip}");
        Resource::Listener(http_listener(&name, TrafficDirection::Inbound, routes))
    };
    let mut meshed = cluster(STOCK_CLUSTER, Discovery::Eds(STOCK_CLUSTER.into()));
    meshed.tls = Some(UpstreamTls {
        sni: "outbound_.80_._.stock.shop".into(),
        subject_alt_names: Vec::new(),
        alpn: Vec::new(),
        only_meshed_endpoints: true,
    });
    let resources = [
        (captured("10.1.0.1", &["inbound|8080||", "inbound|0||"]), vec![]),
        (captured("fd00::7", &["inbound|8080||"]), vec![]),
        (stock_listener(), vec!["10.0.0.1:80"]),
        (stock_routes(), vec![]),
        (Resource::Cluster(meshed), vec![]),
        (stock_endpoints(&[[10, 1, 0, 1], [10, 1, 0, 2]]), vec![]),
    ];
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, "10.0.0.1:80");
        let now = tokio::select! {
            () = stream.serve(&resources) => panic!("the stream ended"),
            now = snapshot(&handle, |now| now.captured.len() == 2 && now.outbound.contains_key("10.0.0.1:80")) => now,
        };
        assert!(handle.readiness.borrow().configuration);
        for (address, cluster) in [("10.1.0.1:8080", 0), ("10.1.0.1:9", 1), ("[fd00::7]:8080", 0)] {
            let address = address.parse().expect("valid");
            let listener = now.inbound_at(address).expect("every port has one");
            let ChainProtocol::Http(routes) = &listener.chains[0].protocol else { panic!("not HTTP") };
            let app = routes.runtime[0].backends[cluster].cluster.as_ref().expect("the application");
            assert!(app.is_original_destination());
        }
        assert!(now.inbound_at("10.1.0.2:8080".parse().expect("valid")).is_none());
        let endpoints = now.clusters[STOCK_CLUSTER].endpoints.iter();
        let tls: Vec<_> = endpoints.map(|e| (e.address.ip().to_string(), e.tls.is_some())).collect();
        assert_eq!(tls, [("10.1.0.1".to_owned(), false), ("10.1.0.2".to_owned(), true)]);
    })
    .await;
}

#[tokio::test]
async fn a_cluster_by_name_is_resolved_before_its_listener_is_in_force() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    let host = HostPort { host: "localhost".into(), port: 7 };
    let by_name = Resource::Cluster(cluster(STOCK_CLUSTER, Discovery::LogicalDns(host, DnsFamily::All)));
    let resources = [(stock_listener(), vec![]), (stock_routes(), vec![]), (by_name, vec![])];
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, STOCK);
        tokio::select! {
            now = snapshot(&handle, |now| now.outbound.contains_key(STOCK)) => {
                assert_eq!(endpoints_of(&now, STOCK), Some(1));
                let cluster = &now.clusters[STOCK_CLUSTER];
                let endpoint = cluster.endpoints.iter().next().expect("one");
                assert!(endpoint.address.ip().is_loopback() && endpoint.address.port() == 7);
            }
            () = stream.serve(&resources) => panic!("the stream ended"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_version_waits_for_its_clusters_while_the_old_one_serves() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, STOCK);
        for resource in [stock_listener(), stock_routes(), stock_cluster(), stock_endpoints(&[[10, 1, 0, 1]])]
        {
            stream.subscribes(resource.kind()).await;
            stream.send(&[resource], &[]).await;
        }
        snapshot(&handle, |now| now.outbound.contains_key(STOCK)).await;

        let moved = Resource::Route(routes(STOCK_CLUSTER, &["other"]));
        let nonce = stream.send(&[moved], &[]).await;
        assert_eq!(stream.subscribes(Kind::Cluster).await.resource_names_subscribe, ["other"]);
        assert_eq!(stream.answers(&nonce).await, None);
        assert_eq!(endpoints_of(&handle.snapshots.borrow(), STOCK), Some(1));
        // The old version's endpoints are still followed.
        stream.send(&[stock_endpoints(&[[10, 1, 0, 1], [10, 1, 0, 2]])], &[]).await;
        snapshot(&handle, |now| endpoints_of(now, STOCK) == Some(2)).await;

        let other = cluster("other", Discovery::Static(endpoints("other", &[[10, 2, 0, 1]])));
        stream.send(&[Resource::Cluster(other)], &[]).await;
        snapshot(&handle, |now| endpoints_of(now, STOCK) == Some(1)).await;
        assert_eq!(stream.subscribes(Kind::Cluster).await.resource_names_unsubscribe, [STOCK_CLUSTER]);
    })
    .await;
}

/// A trust bundle as a secret.
pub(super) fn root_ca(pem: String) -> Resource {
    Resource::Secret(Secret { name: "ROOTCA".into(), value: SecretValue::TrustBundle(pem) })
}

pub(super) const MOMENT: Duration = Duration::from_millis(50);
