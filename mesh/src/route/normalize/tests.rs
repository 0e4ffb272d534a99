use super::*;

const NORMALIZE: PathHandling =
    PathHandling { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
const MERGE: PathHandling = PathHandling { normalize: false, merge_slashes: true, ..NORMALIZE };

#[test]
fn dot_segments_are_resolved_and_never_lead_above_the_root() {
    for (path, expected) in [
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/../../a", "/a"),
        ("/a//../b", "/a/b"),
        ("/%2e%2E/a/%2e", "/a/"),
        ("/a\\..\\b", "/b"),
        ("/%41%7e%2d", "/A~-"),
        ("/a/..;x=1/b/%2E;/c;y", "/b/c;y"),
        ("/a{b}|^", "/a%7Bb%7D%7C%5E"),
        ("/%2%41/%%34%35", "/%252A/%2545"),
        ("/a/../b?x=/../y", "/b?x=/../y"),
    ] {
        assert_eq!(normalize(path, &NORMALIZE), Normalized::Changed(expected.into()), "{path}");
    }
}

#[test]
fn what_needs_nothing_stays() {
    for path in ["/", "/a/b.c", "/a..b/.c/..d/...", "/a//b", "/%2f%5C%20%zz%", "/a?b//../c", "*", "", "?a"] {
        assert_eq!(normalize(path, &NORMALIZE), Normalized::Same, "{path}");
    }
    for path in ["/a//../b", "/%2e//a", "*", "\\\\"] {
        assert_eq!(normalize(path, &PathHandling::default()), Normalized::Same, "{path}");
    }
}

#[test]
fn several_slashes_become_one() {
    assert_eq!(normalize("//a///b//?c//d", &MERGE), Normalized::Changed("/a/b/?c//d".into()));
    assert_eq!(normalize("/a/b/", &MERGE), Normalized::Same);
    // Dots first: an empty segment is one that `..` takes away.
    assert_eq!(normalize("/a//../b", &PathHandling::NORMAL), Normalized::Changed("/a/b".into()));
}

#[test]
fn escaped_slashes_are_treated_as_asked() {
    let with = |escaped_slashes| normalize("/a%2F..%5cb?%2f", &PathHandling { escaped_slashes, ..NORMALIZE });
    assert_eq!(with(EscapedSlashes::Keep), Normalized::Same);
    assert_eq!(with(EscapedSlashes::Reject), Normalized::Refused);
    assert_eq!(with(EscapedSlashes::Redirect), Normalized::Redirect("/b?%2f".into()));
    assert_eq!(with(EscapedSlashes::Unescape), Normalized::Changed("/b?%2f".into()));
    let plain = PathHandling { escaped_slashes: EscapedSlashes::Reject, ..NORMALIZE };
    assert_eq!(normalize("/a%20?%2f", &plain), Normalized::Same);
}
