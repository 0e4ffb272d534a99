//! A large cluster. Run by `tests/bench/cluster`, which prints what it costs; here are only bounds that no sound control
//! plane passes.

use std::time::{Duration, Instant};

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tulle_tests::apiserver::ApiServer;

use crate::plane::{Plane, SYSTEM, metrics, until};

const SERVICES: usize = 5_000;
const ENDPOINTS: usize = 10;

/// 5,000 Services with ten endpoints each are read in bounded time and memory, and a change among them is known soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/bench/cluster runs it"]
async fn five_thousand_services_with_fifty_thousand_endpoints() {
    let api = ApiServer::start().await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    let filling = Instant::now();
    fill(&api).await;
    println!("made {SERVICES} Services and {} endpoints in {:?}", SERVICES * ENDPOINTS, filling.elapsed());

    let starting = Instant::now();
    let plane = Plane::start(&api).await;
    let started = starting.elapsed();
    let objects = metrics(plane.http()).await.sum("tulle_control_plane_objects", &[]);
    assert!(objects >= 2.0 * SERVICES as f64, "{objects} objects");
    let (peak, held) = (memory(&plane, "VmHWM"), memory(&plane, "VmRSS"));

    let changing = Instant::now();
    api.apply(&service(SERVICES).to_string()).await;
    let applied = changing.elapsed();
    until(async || match metrics(plane.http()).await.sum("tulle_control_plane_objects", &[]) {
        now if now > objects => Ok(()),
        now => Err(format!("{now} objects")),
    })
    .await;
    println!(
        "ready after {started:?}; a change is known {:?} after kubectl has applied it",
        changing.elapsed() - applied
    );
    println!("memory: {} MiB, {} MiB at most", held / 1024, peak / 1024);
    assert!(started < Duration::from_secs(60), "{started:?}");
    assert!(peak < 2 * 1024 * 1024, "{peak} KiB");
}

/// In KiB, as the system counts it.
fn memory(plane: &Plane, field: &str) -> u64 {
    let id = plane.process.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux says it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|text| text.split_whitespace().next()?.parse().ok()).expect("a number of kB")
}

async fn fill(api: &ApiServer) {
    let kubeconfig = Kubeconfig::read_from(&api.kubeconfig).expect("it is written");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = Client::try_from(config.expect("a kubeconfig")).expect("a client");
    let of = |group: &str, kind: &str| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Api::<DynamicObject>::namespaced_with(client.clone(), "shop", &resource)
    };
    let (services, slices) = (of("", "Service"), of("discovery.k8s.io", "EndpointSlice"));
    let mut tasks = JoinSet::new();
    for index in 0..SERVICES {
        let (services, slices) = (services.clone(), slices.clone());
        tasks.spawn(async move {
            for (api, object) in [(services, service(index)), (slices, slice(index))] {
                let object: DynamicObject = serde_json::from_value(object).expect("an object");
                api.create(&PostParams::default(), &object).await.expect("it is sound");
            }
        });
        if tasks.len() >= 32 {
            tasks.join_next().await.expect("there are some").expect("it does not panic");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("it does not panic");
    }
}

fn service(index: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("s{index}"), "namespace": "shop" },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

fn slice(index: usize) -> Value {
    let address =
        |number: usize| format!("10.{}.{}.{}", 128 + number / 65536, number / 256 % 256, number % 256);
    let endpoints = (0..ENDPOINTS).map(|endpoint| {
        json!({
            "addresses": [address(index * ENDPOINTS + endpoint)],
            "conditions": { "ready": true },
            "nodeName": format!("n{}", endpoint),
            "zone": format!("zone-{}", endpoint % 3),
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("s{index}"),
            "namespace": "shop",
            "labels": { "kubernetes.io/service-name": format!("s{index}") },
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}
