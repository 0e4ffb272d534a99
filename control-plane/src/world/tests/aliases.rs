use super::support::{problems, service, workload, world};

#[test]
fn a_service_is_found_by_each_of_its_names() {
    let world = world(&format!(
        "{}{}{}",
        service("shop", "cart", "clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80, targetPort: http}]"),
        service("books", "cart", "clusterIP: None, ports: [{port: 80}]"),
        workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 25001),
    ));
    assert_eq!(problems(&world), Vec::<String>::new());
    let shop = "cart.shop.svc.cluster.local:80";
    let cases = [
        ("cart.shop.svc.cluster.local:80", "", Some(shop)),
        ("cart.shop.svc.cluster.local.:80", "", Some(shop)),
        ("Cart.Shop.svc:80", "", Some(shop)),
        ("cart.shop:80", "elsewhere", Some(shop)),
        ("cart:80", "shop", Some(shop)),
        ("cart:80", "books", Some("cart.books.svc.cluster.local:80")),
        ("cart:80", "elsewhere", None),
        ("10.96.0.1:80", "", Some(shop)),
        ("[fd00::1]:80", "", Some(shop)),
        ("10.96.0.1:81", "", None),
        ("cart.shop:81", "", None),
        ("cart.shop", "", None),
        ("cart.shop:x", "", None),
        ("cart.shop.svc.other.domain:80", "", None),
        ("127.0.0.1:25001", "", Some("127.0.0.1:25001")),
        // The application's own port is not the mesh's.
        ("127.0.0.1:8080", "", None),
        ("tulle/inbound/127.0.0.1:25001", "", Some("tulle/inbound/127.0.0.1:25001")),
        ("tulle/inbound/127.0.0.1:1", "", None),
    ];
    for (name, namespace, expected) in cases {
        assert_eq!(world.resolve(name, namespace).as_deref(), expected, "{name} in {namespace:?}");
    }
    for key in world.listeners().keys() {
        assert_eq!(world.resolve(key, "").as_ref(), Some(key), "a key names itself");
    }
}
