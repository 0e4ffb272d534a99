use http::{HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::model::{Format, HeadField, HeaderMutation, Regex, Substitution};

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

fn change(op: HeaderOp, name: &'static str, value: &'static str) -> HeaderMutation {
    HeaderMutation { name: HeaderName::from_static(name), value: HeaderValue::from_static(value).into(), op }
}

#[test]
fn headers_are_removed_first_then_set_then_added() {
    let mutations = HeaderMutations {
        remove: vec![HeaderName::from_static("gone"), HeaderName::from_static("back")],
        change: vec![
            change(HeaderOp::Append, "list", "3"),
            change(HeaderOp::Append, "new", "1"),
            change(HeaderOp::AddIfAbsent, "there", "x"),
            change(HeaderOp::AddIfAbsent, "back", "1"),
            change(HeaderOp::Set, "list2", "3"),
            change(HeaderOp::Set, "new2", "1"),
            change(HeaderOp::SetIfPresent, "there2", "2"),
            change(HeaderOp::SetIfPresent, "absent", "x"),
            change(HeaderOp::AddIfAbsent, "new2", "2"),
        ],
    };
    let mut given = headers(&[
        ("gone", "1"),
        ("gone", "2"),
        ("back", "0"),
        ("list", "1"),
        ("list", "2"),
        ("list2", "1"),
        ("list2", "2"),
        ("there", "1"),
        ("there2", "1"),
    ]);
    mutate_headers(&mutations, &mut given, |_, _, _| panic!("nothing is asked for"));
    let expected = headers(&[
        ("list", "1"),
        ("list", "2"),
        ("list", "3"),
        ("new", "1"),
        ("there", "1"),
        ("back", "1"),
        ("list2", "3"),
        ("new2", "1"),
        ("new2", "2"),
        ("there2", "2"),
    ]);
    assert_eq!(given, expected);
}

#[test]
fn operators_see_the_head_as_it_was_after_the_removals() {
    let format = |op, name: &'static str, text: &str, keep_empty| HeaderMutation {
        value: HeaderText::Format { format: Format::parse(text).unwrap(), keep_empty },
        ..change(op, name, "")
    };
    let mutations = HeaderMutations {
        remove: vec![HeaderName::from_static("gone")],
        change: vec![
            format(HeaderOp::Append, "of-gone", "%REQ(gone)%", false),
            format(HeaderOp::Append, "both", "%REQ(gone)%", true),
            format(HeaderOp::Set, "kept", "%REQ(gone)%", false),
            change(HeaderOp::Set, "a", "new"),
            format(HeaderOp::Append, "of-a", "<%REQ(a)%>", false),
            format(HeaderOp::Append, "a", "%REQ(a):2%", false),
            format(HeaderOp::AddIfAbsent, "kept", "%REQ(a)%", false),
            format(HeaderOp::SetIfPresent, "none", "%REQ(a)%", false),
        ],
    };
    let mut given = headers(&[("gone", "1"), ("kept", "k"), ("a", "old")]);
    mutate_headers(&mutations, &mut given, |headers, operator, out| match operator {
        Operator::Request(HeadField::Named(name), None) => {
            out.extend(headers.get(name).map_or(&b""[..], HeaderValue::as_bytes));
        }
        other => panic!("{other:?}"),
    });
    let expected = headers(&[("kept", "k"), ("a", "new"), ("both", ""), ("of-a", "<old>"), ("a", "ol")]);
    assert_eq!(given, expected);
}

fn rewritten_to(rewrite: &PathRewrite, matched: &PathMatch, target: &str) -> String {
    rewrite_path(rewrite, matched, &target.parse().unwrap()).unwrap().to_string()
}

#[test]
fn a_prefix_is_replaced_as_gateway_api_has_it() {
    // The table of `HTTPPathModifier.replacePrefixMatch`: path, prefix, replacement, result.
    for (path, prefix, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // Beyond the table.
        ("/foo", "/foo", "/xyz/", "/xyz/"),
        ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
    ] {
        let rewrite = PathRewrite::Prefix(replacement.into());
        let whole = prefix.trim_end_matches('/');
        let mut ways = vec![PathMatch::Prefix(prefix.into())];
        if !whole.is_empty() {
            ways.push(PathMatch::Segments(whole.into()));
        }
        for matched in ways {
            let case = format!("{path} under {matched:?} by {replacement:?}");
            assert_eq!(rewritten_to(&rewrite, &matched, path), expected, "{case}");
            assert_eq!(
                rewritten_to(&rewrite, &matched, &format!("{path}?a=/foo")),
                format!("{expected}?a=/foo"),
                "{case}"
            );
        }
    }
}

#[test]
fn what_matched_as_a_whole_is_replaced_as_a_whole() {
    let rewrite = PathRewrite::Prefix("/xyz".into());
    assert_eq!(rewritten_to(&rewrite, &PathMatch::Exact("/foo/bar".into()), "/foo/bar?q"), "/xyz?q");
    assert_eq!(rewritten_to(&rewrite, &PathMatch::Regex(Regex::new("/.*").unwrap()), "/foo/bar"), "/xyz");
    // A prefix that ends within a segment leaves the rest of the segment.
    assert_eq!(rewritten_to(&rewrite, &PathMatch::Prefix("/fo".into()), "/foo/bar"), "/xyzo/bar");
}

#[test]
fn a_path_is_replaced_in_full_or_by_an_expression() {
    let any = PathMatch::Prefix("/".into());
    let full = |path: &str| PathRewrite::Full(path.into());
    assert_eq!(rewritten_to(&full("/one"), &any, "/a/b?q=1"), "/one?q=1");
    assert_eq!(rewritten_to(&full("one"), &any, "/a"), "/one");
    assert_eq!(rewritten_to(&full("/one?own"), &any, "/a?q=1"), "/one?own");
    assert_eq!(rewritten_to(&full(""), &any, "/a?q"), "/?q");
    let regex = PathRewrite::Regex(Substitution::new("/v([0-9])/", r"/\1/").unwrap());
    assert_eq!(rewritten_to(&regex, &any, "/v1/x/v2/y?p=/v3/"), "/1/x/2/y?p=/v3/");
    let error = rewrite_path(&full("/a b"), &any, &"/".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("\"/a b\" is not valid"), "{error}");
}

fn redirect() -> Redirect {
    Redirect {
        scheme: None,
        host: None,
        port: None,
        path: None,
        status: StatusCode::FOUND,
        strip_query: false,
    }
}

fn location(redirect: &Redirect, scheme: &str, authority: &str) -> String {
    redirect_location(
        redirect,
        scheme,
        authority,
        &"/a/b?q=1".parse().unwrap(),
        &PathMatch::Segments("/a".into()),
    )
}

#[test]
fn a_redirect_keeps_what_it_does_not_name() {
    let host = |host: &str| Some(host.to_owned());
    assert_eq!(location(&redirect(), "http", "h:8080"), "http://h:8080/a/b?q=1");
    assert_eq!(location(&Redirect { strip_query: true, ..redirect() }, "http", "h"), "http://h/a/b");
    assert_eq!(
        location(&Redirect { host: host("g"), ..redirect() }, "http", "h:8080"),
        "http://g:8080/a/b?q=1"
    );
    let path = Some(PathRewrite::Prefix("/x".into()));
    assert_eq!(location(&Redirect { path, ..redirect() }, "http", "[::1]:81"), "http://[::1]:81/x/b?q=1");
    let path = Some(PathRewrite::Full("/x".into()));
    assert_eq!(
        location(&Redirect { path, strip_query: true, ..redirect() }, "https", "[::1]"),
        "https://[::1]/x"
    );
}

#[test]
fn the_port_of_a_redirect_follows_gateway_api() {
    // The redirect's scheme and port, the request's scheme and authority, the location.
    for (scheme, port, from, authority, expected) in [
        (None, None, "http", "h:8080", "http://h:8080"),
        (None, None, "http", "h:80", "http://h"),
        (None, None, "https", "h:443", "https://h"),
        (None, None, "https", "h:80", "https://h:80"),
        (Some("https"), None, "http", "h:8080", "https://h"),
        (Some("http"), None, "https", "h:8443", "http://h"),
        (Some("http"), None, "http", "h:8080", "http://h"),
        (Some("https"), Some(8443), "http", "h:8080", "https://h:8443"),
        (Some("https"), Some(443), "http", "h", "https://h"),
        (Some("http"), Some(443), "http", "h", "http://h:443"),
        (None, Some(80), "http", "h:8080", "http://h"),
        (None, Some(8083), "http", "h", "http://h:8083"),
        (Some("other"), None, "http", "h:8080", "other://h:8080"),
    ] {
        let redirect = Redirect { scheme: scheme.map(Into::into), port, ..redirect() };
        assert_eq!(
            location(&redirect, from, authority),
            format!("{expected}/a/b?q=1"),
            "{redirect:?} of {authority}"
        );
    }
}
