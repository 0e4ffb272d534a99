use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tulle_mesh::model::{Cluster, Listener, LoadAssignment, RouteConfiguration};

use super::support::{load, service, settings, workload};
use crate::source::{Kind, KindVisitor, Objects};
use crate::world::{Changed, Changes, Resources, World};

/// What a server that applies each change to what it has would hold.
#[derive(Default)]
struct Mirror {
    listeners: Resources<Listener>,
    routes: Resources<RouteConfiguration>,
    clusters: Resources<Cluster>,
    endpoints: Resources<LoadAssignment>,
}

impl Mirror {
    fn apply(&mut self, changes: &Changes, world: &World) {
        apply(&mut self.listeners, &changes.listeners, world.listeners());
        apply(&mut self.routes, &changes.routes, world.routes());
        apply(&mut self.clusters, &changes.clusters, world.clusters());
        apply(&mut self.endpoints, &changes.endpoints, world.assignments());
    }
}

fn apply<T>(held: &mut Resources<T>, changed: &Changed, now: &Resources<T>) {
    for key in &changed.updated {
        held.insert(key.clone(), now[key].clone());
    }
    for key in &changed.removed {
        assert!(held.remove(key).is_some(), "{key} was never there");
    }
}

fn shop() -> Objects {
    let route = |namespace: &str, name: &str, backend: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}]\n  \
             rules: [{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}]\n"
        )
    };
    let policy = |kind: &str, name: &str, rest: &str| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, name: cart}}], {rest}}}\n"
        )
    };
    let yaml = [
        service("shop", "cart", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: http}]"),
        service("shop", "stock", "ports: [{port: 80, targetPort: http}]"),
        workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 25001),
        workload("shop", "cart-2", "cart", "127.0.0.1", 8080, 25002),
        workload("shop", "stock-1", "stock", "127.0.0.1", 8080, 25003),
        route("shop", "all", "cart"),
        route("shop", "more", "stock"),
        route("elsewhere", "own", "stock"),
        route("elsewhere", "lost", "missing"),
        policy("BackendTrafficPolicy", "a", "loadBalancer: {algorithm: RoundRobin}"),
        policy("BackendTrafficPolicy", "b", "loadBalancer: {algorithm: Random}"),
        policy("InboundPolicy", "a", "mtls: {mode: Strict}"),
        policy("TelemetryPolicy", "a", "accessLog: {mode: JSON}"),
        policy("AuthorizationPolicy", "a", "action: ALLOW, rules: []"),
    ];
    load(&yaml.concat()).objects
}

/// Those objects whose bit is set.
fn some_of(all: &Objects, bits: u32) -> Objects {
    struct Pick<'a> {
        from: &'a Objects,
        into: Objects,
        bits: u32,
        next: u32,
    }
    impl KindVisitor for Pick<'_> {
        fn visit<T: Kind>(&mut self) {
            for object in T::table(self.from).values() {
                if self.bits & (1 << self.next) != 0 {
                    self.into.insert(object.clone());
                }
                self.next += 1;
            }
        }
    }
    let mut pick = Pick { from: all, into: Objects::default(), bits, next: 0 };
    Objects::visit_kinds(&mut pick);
    pick.into
}

fn same<T: PartialEq>(left: &Resources<T>, right: &Resources<T>) -> bool {
    left == right
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_updates_ends_where_a_fresh_start_does(steps in prop::collection::vec(0u32..1 << 14, 1..8)) {
        let all = shop();
        let (mut world, mut mirror) = (World::default(), Mirror::default());
        for bits in steps {
            let objects = some_of(&all, bits);
            let changes = world.update(&objects, &settings());
            mirror.apply(&changes, &world);
            let fresh = World::build(&objects, &settings());
            prop_assert!(same(world.listeners(), fresh.listeners()) && same(&mirror.listeners, fresh.listeners()));
            prop_assert!(same(world.routes(), fresh.routes()) && same(&mirror.routes, fresh.routes()));
            prop_assert!(same(world.clusters(), fresh.clusters()) && same(&mirror.clusters, fresh.clusters()));
            prop_assert!(same(world.assignments(), fresh.assignments()) && same(&mirror.endpoints, fresh.assignments()));
            prop_assert_eq!(world.problems(), fresh.problems());
            prop_assert_eq!(world.statuses(), fresh.statuses());
            for key in fresh.listeners().keys() {
                prop_assert_eq!(world.resolve(key, "elsewhere"), fresh.resolve(key, "elsewhere"));
            }
            prop_assert!(world.update(&objects, &settings()).is_empty(), "nothing changed the second time");
        }
    }
}

#[test]
fn a_change_of_endpoints_touches_nothing_else() {
    let all = shop();
    let mut world = World::build(&all, &settings());
    let before: BTreeMap<_, _> = world.clusters().clone();
    let mut objects = all;
    let (_, object) = objects.workloads.iter_mut().next().expect("three");
    Arc::make_mut(&mut object.value).spec.ready = false;
    let changes = world.update(&objects, &settings());
    assert_eq!(
        changes.endpoints.updated.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["outbound|80||cart.shop.svc.cluster.local"]
    );
    assert!(changes.endpoints.removed.is_empty());
    assert!(
        changes.listeners.is_empty() && changes.routes.is_empty() && changes.clusters.is_empty(),
        "{changes:?}"
    );
    assert!(!changes.names && !changes.findings);
    for (name, cluster) in world.clusters() {
        assert!(Arc::ptr_eq(cluster, &before[name]), "{name} is the same object");
    }
}
