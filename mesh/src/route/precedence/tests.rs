use super::*;
use crate::route::fixtures::{exact, header, on, prefix, query, regex, segments};

/// The key of a rule of one and the same place.
fn key(rule: &RouteMatch) -> Key {
    Key::new(rule, None, "ns", "name", 0, 0)
}

/// Each stands before all that follow it.
fn assert_ordered(keys: &[Key]) {
    for (place, key) in keys.iter().enumerate() {
        for later in &keys[place + 1..] {
            assert!(key < later, "{key:?} must stand before {later:?}");
        }
    }
}

fn with(path: PathMatch, headers: &[&str], queries: &[&str]) -> RouteMatch {
    RouteMatch {
        headers: headers.iter().map(|name| header(name, "x")).collect(),
        query: queries.iter().map(|name| query(name, "x")).collect(),
        ..on(path)
    }
}

#[test]
fn http_rules_stand_in_the_order_of_gateway_api() {
    let rules = [
        with(exact("/a"), &[":method", "x"], &[]),
        with(exact("/a"), &[":method"], &["p", "q"]),
        with(exact("/a"), &["x", "y"], &[]),
        with(exact("/a"), &["x"], &["p", "q"]),
        with(exact("/a"), &["x"], &["p"]),
        with(exact("/a"), &[], &[]),
        with(regex("/long.*"), &[], &[]),
        with(regex("/.*"), &["x"], &[]),
        with(segments("/abc"), &[], &[]),
        with(segments("/ab"), &[":method"], &[]),
        with(segments("/ab"), &["x", "y", "z"], &["p"]),
        with(prefix("/ab/"), &["x"], &[]),
        with(segments("/ab"), &[], &["p"]),
        with(prefix("/"), &["x"], &[]),
        with(prefix("/"), &[], &[]),
    ];
    assert_ordered(&rules.iter().map(key).collect::<Vec<_>>());
}

#[test]
fn the_longest_prefix_is_counted_in_characters() {
    assert!(key(&on(segments("/aaa"))) < key(&on(segments("/é"))));
    assert_eq!(key(&on(segments("/é"))), key(&on(segments("/e"))));
}

#[test]
fn grpc_rules_stand_in_the_order_of_gateway_api() {
    let grpc = |path, headers: &[&str]| RouteMatch { grpc: true, ..with(path, headers, &[]) };
    let rules = [
        grpc(exact("/shop.Cart/Remove"), &[]),
        grpc(exact("/shop.Cart/Add"), &["x"]),
        grpc(exact("/shop.Cart/Add"), &[]),
        grpc(segments("/shop.Cart"), &["x", "y"]),
        grpc(regex("/shop.Cart/[^/]+"), &["x"]),
        grpc(prefix("/shop.Cart/"), &[]),
        grpc(exact("/shop.C/Remove"), &["x"]),
        grpc(regex("/[^/]+/Remove"), &[]),
        grpc(regex("/[^/]+/Add"), &["x"]),
        grpc(prefix("/"), &["x"]),
        grpc(prefix("/"), &[]),
    ];
    assert_ordered(&rules.iter().map(key).collect::<Vec<_>>());
    assert!(key(&rules[10]) < key(&on(exact("/a"))));
}

#[test]
fn ties_go_by_age_then_name_then_place() {
    let rule = on(prefix("/"));
    let key = |created, namespace, name, rule_number, matched| {
        Key::new(&rule, created, namespace, name, rule_number, matched)
    };
    assert_ordered(&[
        key(Some(-1), "z", "z", 9, 9),
        key(Some(5), "a", "a", 0, 1),
        key(Some(5), "a", "a", 1, 0),
        key(Some(5), "a", "b", 0, 0),
        // By "<namespace>/<name>" as one text: '-' stands before '/'.
        key(None, "a-b", "x", 3, 0),
        key(None, "a", "x", 0, 0),
    ]);
}
