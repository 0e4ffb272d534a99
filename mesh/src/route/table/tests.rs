use http::{HeaderMap, Method};

use super::*;
use crate::model::{PerMillion, RouteMatch};
use crate::route::fixtures::{configuration, exact, header, host, on, prefix, query, regex, route, segments};

mod linear;

fn no_draw() -> u32 {
    panic!("nothing here has a fraction")
}

/// The name of the route that a GET takes.
fn taken<'t>(table: &'t RouteTable, authority: &str, target: &str) -> Option<&'t str> {
    let headers = HeaderMap::new();
    match table.lookup(&RequestView::new(&Method::GET, authority, target, &headers), no_draw) {
        Lookup::Found(id) => Some(&table.route(id).name),
        Lookup::NoVirtualHost | Lookup::NoRoute => None,
    }
}

fn table_of_domains(domains: &[&str]) -> RouteTable {
    let hosts = domains.iter().map(|domain| host(&[domain], vec![route(domain, on(prefix("/")))]));
    RouteTable::compile(&configuration(hosts.collect())).unwrap()
}

#[test]
fn the_most_specific_domain_wins_whatever_its_place() {
    let table = table_of_domains(&["*", "cart.*", "cart.shop.*", "*.shop", "*.eu.shop", "cart.shop"]);
    for (authority, expected) in [
        ("cart.shop", "cart.shop"),
        ("CART.Shop", "cart.shop"),
        ("a.shop", "*.shop"),
        ("a.eu.shop", "*.eu.shop"),
        ("A.EU.SHOP", "*.eu.shop"),
        // A suffix beats a prefix.
        ("cart.eu.shop", "*.eu.shop"),
        ("cart.shop.local", "cart.shop.*"),
        ("cart.local", "cart.*"),
        // Something must stand where the asterisk does.
        (".shop", "*"),
        ("cart.", "*"),
        ("other", "*"),
        ("", "*"),
    ] {
        assert_eq!(taken(&table, authority, "/"), Some(expected), "{authority}");
    }
}

#[test]
fn a_port_counts_where_a_domain_has_one_and_is_left_out_otherwise() {
    let table = table_of_domains(&["cart.shop:8080", "cart.shop", "*.shop:81", "*.shop", "[::1]", "cart.*"]);
    for (authority, expected) in [
        ("cart.shop:8080", Some("cart.shop:8080")),
        ("cart.shop:80", Some("cart.shop")),
        ("cart.shop:", Some("cart.shop")),
        // A dot at the end of an absolute name says nothing else.
        ("cart.shop.", Some("cart.shop")),
        ("Cart.Shop.:80", Some("cart.shop")),
        ("a.shop.", Some("*.shop")),
        ("a.shop:81", Some("*.shop:81")),
        ("a.shop:80", Some("*.shop")),
        ("[::1]:80", Some("[::1]")),
        ("[::1]", Some("[::1]")),
        // Without brackets the last part of an address is no port.
        ("::1", None),
        ("other:80", None),
        ("cart.shop:x", Some("cart.*")),
    ] {
        assert_eq!(taken(&table, authority, "/"), expected, "{authority}");
    }
}

#[test]
fn a_domain_may_stand_once_only() {
    for (first, second) in [("a.b", "A.b"), ("*", "*"), ("*.b", "*.B"), ("a.*", "a.*")] {
        let hosts = vec![host(&["x", first], vec![]), host(&["y", second], vec![])];
        let error = RouteTable::compile(&configuration(hosts)).unwrap_err();
        let expected = RouteError::DuplicateDomain {
            configuration: "test".into(),
            domain: Domain::parse(second),
            virtual_hosts: ["x".into(), "y".into()],
        };
        assert_eq!(error, expected);
        assert!(
            error.to_string().contains(&format!("domain \"{}\"", second.to_ascii_lowercase())),
            "{error}"
        );
    }
    let error = RouteTable::compile(&configuration(vec![host(&[], vec![])])).unwrap_err();
    assert_eq!(error, RouteError::NoDomain { configuration: "test".into(), virtual_host: "none".into() });
}

#[test]
fn the_first_rule_that_matches_wins_across_all_kinds_of_path() {
    let insensitive = RouteMatch { case_sensitive: false, ..on(segments("/ci")) };
    let table = RouteTable::compile(&configuration(vec![host(
        &["*"],
        vec![
            route("deep", on(segments("/a/b/c"))),
            route("regex", on(regex("/a/[0-9]+"))),
            route("exact", on(exact("/a/7"))),
            route("insensitive", insensitive),
            route("text", on(prefix("/a/b"))),
            route("late", on(exact("/a/b/x"))),
            route("segment", on(segments("/a"))),
            route("a", on(exact("/a"))),
            route("unreached", on(segments("/a"))),
        ],
    )]))
    .unwrap();
    for (path, expected) in [
        ("/a/b/c", Some("deep")),
        ("/a/b/c/d", Some("deep")),
        ("/a/b/cd", Some("text")),
        ("/a/b/x", Some("text")),
        ("/a/bx", Some("text")),
        ("/a/7", Some("regex")),
        ("/a/x", Some("segment")),
        ("/a", Some("segment")),
        ("/a?b", Some("segment")),
        ("/ab", None),
        ("/CI/x", Some("insensitive")),
        ("/cix", None),
        ("/", None),
        ("", None),
    ] {
        assert_eq!(taken(&table, "any", path), expected, "{path}");
    }
}

#[test]
fn all_conditions_must_hold() {
    let mut rule = on(prefix("/"));
    rule.headers = vec![header(":method", "POST"), header("x-a", "1"), header(":authority", "h:80")];
    rule.query = vec![query("q", "a b")];
    rule.grpc = true;
    let table = RouteTable::compile(&configuration(vec![host(&["*"], vec![route("all", rule)])])).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("x-a", "1".parse().unwrap());
    headers.insert("content-type", "application/grpc+proto".parse().unwrap());
    let lookup = |method: &Method, authority: &str, target: &str, headers: &HeaderMap| {
        table.lookup(&RequestView::new(method, authority, target, headers), no_draw)
    };
    assert!(matches!(lookup(&Method::POST, "h:80", "/?q=a%20b", &headers), Lookup::Found(_)));
    assert_eq!(lookup(&Method::GET, "h:80", "/?q=a%20b", &headers), Lookup::NoRoute);
    assert_eq!(lookup(&Method::POST, "h", "/?q=a%20b", &headers), Lookup::NoRoute);
    assert_eq!(lookup(&Method::POST, "h:80", "/?q=a", &headers), Lookup::NoRoute);
    assert_eq!(lookup(&Method::POST, "h:80", "/?q=a&q=a%20b", &headers), Lookup::NoRoute);
    for (name, value) in
        [("x-a", "2"), ("content-type", "application/grpc-web"), ("content-type", "text/plain")]
    {
        let mut headers = headers.clone();
        headers.insert(name, value.parse().unwrap());
        assert_eq!(lookup(&Method::POST, "h:80", "/?q=a%20b", &headers), Lookup::NoRoute, "{value}");
    }
}

#[test]
fn a_fraction_is_drawn_only_when_all_else_holds() {
    let half = |path| RouteMatch { fraction: Some(PerMillion::percent(50)), ..on(path) };
    let table = RouteTable::compile(&configuration(vec![host(
        &["*"],
        vec![
            route("other", half(segments("/other"))),
            route("half", half(segments("/a"))),
            route("rest", on(prefix("/"))),
        ],
    )]))
    .unwrap();
    let headers = HeaderMap::new();
    let request = RequestView::new(&Method::GET, "h", "/a", &headers);
    for (draw, expected) in
        [(0, "half"), (u32::MAX / 2, "half"), (u32::MAX / 2 + 1, "rest"), (u32::MAX, "rest")]
    {
        let mut draws = 0;
        let found = table.lookup(&request, || {
            draws += 1;
            draw
        });
        let Lookup::Found(id) = found else { panic!("the last route takes everything") };
        assert_eq!((table.route(id).name.as_str(), draws), (expected, 1), "{draw}");
    }
}

#[test]
fn numbers_are_dense_over_all_virtual_hosts() {
    let hosts = vec![
        host(&["a"], vec![route("a0", on(prefix("/x"))), route("a1", on(prefix("/")))]),
        host(&["empty"], vec![]),
        host(&["b"], vec![route("b0", on(prefix("/")))]),
    ];
    let table = RouteTable::compile(&configuration(hosts)).unwrap();
    assert_eq!((table.len(), table.is_empty()), (3, false));
    let names: Vec<_> = table.routes().map(|(id, route)| (id.index(), route.name.as_str())).collect();
    assert_eq!(names, [(0, "a0"), (1, "a1"), (2, "b0")]);
    for (id, route) in table.routes() {
        assert_eq!(table.route(id), route);
        assert_eq!(table.virtual_host(id).name, route.name[..1]);
    }
    let headers = HeaderMap::new();
    let lookup = |host| table.lookup(&RequestView::new(&Method::GET, host, "/", &headers), no_draw);
    assert!(matches!(lookup("b"), Lookup::Found(id) if id.index() == 2));
    assert_eq!(lookup("empty"), Lookup::NoRoute);
    assert_eq!(lookup("c"), Lookup::NoVirtualHost);
}

#[test]
fn a_table_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    shared(&table_of_domains(&["*"]));
    shared(&crate::authorize::Authorizer::compile(vec![]));
}
