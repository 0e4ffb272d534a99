//! What somebody who may write to one namespace can't do to another.

use super::support::{problems, service, workload, world};

/// A pod with a sidecar.
fn pod(namespace: &str, name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}, \
         tulle.dev/tls: mesh}}}}\nspec: {{serviceAccountName: {name}, containers: [{{name: app, image: app}}]}}\nstatus: \
         {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

#[test]
fn a_workload_does_not_take_the_address_of_another() {
    let cart =
        service("shop", "cart", "clusterIP: 10.96.0.9, ports: [{name: http, port: 80, targetPort: 8080}]");
    let own = format!(
        "{cart}{}{}",
        pod("shop", "cart", "10.0.0.1"),
        workload("shop", "vm", "vm", "10.0.0.7", 80, 80)
    );
    let before = world(&own);
    let attacks = [
        ("10.0.0.1", "10.0.0.1 is the address of Pod shop/cart"),
        ("10.96.0.9", "10.96.0.9 is the address of Service shop/cart"),
        ("10.0.0.7", "10.0.0.7 is the address of Workload shop/vm"),
    ];
    for (address, reason) in attacks {
        let after = world(&format!("{own}{}", workload("tenant", "thief", "thief", address, 8080, 8080)));
        assert_eq!(after.listeners(), before.listeners(), "{address}");
        assert_eq!(after.clusters(), before.clusters(), "{address}");
        assert_eq!(after.assignments(), before.assignments(), "{address}");
        let problems = problems(&after);
        assert!(problems.iter().any(|problem| problem.contains(reason)), "{problems:?}");
    }
}

#[test]
fn who_was_first_at_an_address_keeps_it() {
    let aged = |namespace: &str, created: &str| {
        let text = workload(namespace, "vm", "vm", "10.0.0.7", 80, 80);
        text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{created}', "))
    };
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let world = world(&format!("{}{}", aged("a-tenant", young), aged("shop", old)));
    let identities: Vec<_> =
        world.workloads().iter().filter_map(|workload| workload.identity.clone()).collect();
    assert_eq!(identities.len(), 1, "{identities:?}");
    assert_eq!(identities[0].namespace(), Some("shop"));
}

#[test]
fn endpoints_that_somebody_writes_lead_to_who_is_there() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: bait-1, namespace: tenant, \
                 labels: {kubernetes.io/service-name: bait}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1], \
                 hostname: cart}]\nports: [{name: http, port: 8080}]\n";
    let bait = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bait, namespace: tenant}\nspec: {clusterIP: None, \
                externalIPs: [10.0.0.1, 10.96.0.9], ports: [{name: http, port: 8080}]}\n";
    let cart =
        service("shop", "cart", "clusterIP: 10.96.0.9, ports: [{name: http, port: 80, targetPort: 8080}]");
    let own = format!("{cart}{}", pod("shop", "cart", "10.0.0.1"));
    let (before, after) = (world(&own), world(&format!("{own}{bait}{slice}")));
    // By its address the pod is what it was, and the Service of the tenant is none for others.
    for name in ["10.0.0.1:8080", "10.0.0.1:9999", "10.96.0.9:80", "10.96.0.9:8080", "cart.shop:80"] {
        assert_eq!(after.resolve(name, "shop"), before.resolve(name, "shop"), "{name}");
    }
    for (name, listener) in before.listeners() {
        assert_eq!(after.listener(name), Some(listener), "{name}");
    }
    // Who goes there by the tenant's name meets the pod, and expects it.
    let assignment =
        after.assignment("outbound|8080||bait.tenant.svc.cluster.local").expect("it has endpoints");
    let text = format!("{assignment:?}");
    assert!(text.contains("/ns/shop/sa/cart") && !text.contains("/ns/tenant/"), "{text}");
}
