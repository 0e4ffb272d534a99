use super::*;

const NONE: Option<&str> = None;

fn header(test: HeaderTest, invert: bool) -> HeaderMatch {
    HeaderMatch { invert, ..HeaderMatch::new("x", test) }
}

#[test]
fn a_segment_prefix_ends_at_a_slash() {
    let path = PathMatch::Segments("/v2".into());
    for (text, expected) in [("/v2", true), ("/v2/", true), ("/v2/x", true), ("/v2x", false), ("/v", false)] {
        assert_eq!(path.matches(text, true), expected, "{text}");
    }
    assert!(path.matches("/V2/x", false));
    assert!(!path.matches("/V2/x", true));
    assert!(PathMatch::Prefix("/v2".into()).matches("/v2x", true));
    assert!(PathMatch::Exact("/v2".into()).matches("/V2", false));
    assert!(!PathMatch::Exact("/v2".into()).matches("/v2/", true));
    assert!(!PathMatch::Regex(Regex::new("/v[0-9]").unwrap()).matches("/v2/x", true));
}

#[test]
fn a_missing_header_never_meets_a_test_on_its_value() {
    for invert in [false, true] {
        assert!(!header(HeaderTest::Value(StringMatch::exact("a")), invert).matches(NONE));
        assert!(!header(HeaderTest::Range { start: 0, end: 9 }, invert).matches(NONE));
    }
    assert!(header(HeaderTest::Value(StringMatch::exact("a")), true).matches(Some("b")));
    assert!(header(HeaderTest::Present(false), false).matches(NONE));
    assert!(header(HeaderTest::Present(true), true).matches(NONE));
    assert!(!header(HeaderTest::Present(true), true).matches(Some("")));
}

#[test]
fn a_missing_header_may_count_as_an_empty_one() {
    let of = |test, invert| HeaderMatch { missing_is_empty: true, ..header(test, invert) };
    let empty = || HeaderTest::Value(StringMatch::exact(""));
    assert!(of(empty(), false).matches(NONE) && !of(empty(), true).matches(NONE));
    assert!(of(HeaderTest::Value(StringMatch::exact("a")), true).matches(NONE));
    assert!(of(HeaderTest::Range { start: 0, end: 9 }, true).matches(NONE));
    assert!(of(HeaderTest::Present(true), false).matches(NONE), "so Envoy has it");
}

#[test]
fn of_several_values_one_is_enough_and_none_hides_another() {
    let evil = HeaderTest::Value(StringMatch::exact("evil"));
    for values in [["evil", "good"], ["good", "evil"]] {
        assert!(header(evil.clone(), false).matches(values));
        assert!(!header(evil.clone(), true).matches(values));
    }
    assert!(!header(HeaderTest::Value(StringMatch::exact("a,b")), false).matches(["a", "b"]));
    assert!(header(HeaderTest::Range { start: 0, end: 9 }, false).matches(["x", "3"]));
}

#[test]
fn a_range_has_its_start_but_not_its_end() {
    let range = header(HeaderTest::Range { start: -1, end: 3 }, false);
    for (value, expected) in
        [("-1", true), ("2", true), ("3", false), ("-2", false), ("", false), ("x", false)]
    {
        assert_eq!(range.matches(Some(value)), expected, "{value}");
    }
}

#[test]
fn a_substitution_replaces_every_match_with_re2_escapes() {
    let apply = |pattern, replacement, text: &str| {
        Substitution::new(pattern, replacement).unwrap().apply(text).into_owned()
    };
    assert_eq!(apply("o", "0", "/foo/boo"), "/f00/b00");
    assert_eq!(apply("^/([a-z]+)/([0-9]+)$", r"/\2/\1x", "/cart/7"), "/7/cartx");
    assert_eq!(apply("/a", r"\0$1\\", "/a"), r"/a$1\");
    assert_eq!(apply("/none", "x", "/a"), "/a");
}

#[test]
fn a_substitution_says_what_is_wrong_with_it() {
    let error = Substitution::new("(a)", r"\2").unwrap_err();
    assert!(error.contains(r#""\2" is neither"#) && error.contains(r#""\1""#), "{error}");
    assert!(Substitution::new("a", r"x\").is_err());
    assert!(Substitution::new("a", r"\n").is_err());
    assert!(Substitution::new("(", "").unwrap_err().contains("not a valid regular expression"));
}

#[test]
fn an_expression_cant_escape_its_anchors() {
    for bad in ["a)|(?:b", "a)", "(", "(?x)a # b"] {
        assert!(Regex::new(bad).is_err(), "{bad}");
    }
    let either = Regex::new("a|b").expect("valid");
    assert!(either.matches("b") && !either.matches("ab"));
}
