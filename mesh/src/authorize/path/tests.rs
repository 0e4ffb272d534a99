use proptest::prelude::*;

use super::*;

fn one(path: &str) -> Readings<'static> {
    Readings::One(path.to_owned().into())
}

fn two(strict: &str, lax: &str) -> Readings<'static> {
    Readings::Two { strict: strict.into(), lax: lax.into() }
}

#[test]
fn a_path_that_all_servers_read_alike_has_one_normal_form() {
    for (path, normal) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("*", "*"),
        ("", ""),
        // Unreserved characters stand for themselves.
        ("/%61%2Db%7e", "/a-b~"),
        ("/%2e%2E/", "unreadable"),
        ("/a/%2e%2e/b", "/b"),
        // Others are escaped, in capitals.
        ("/a%20b%c3%a9", "/a%20b%C3%A9"),
        ("/é\"{x}", "/%C3%A9%22%7Bx%7D"),
        ("/a%25b%3Fc%23", "/a%25b%3Fc%23"),
        ("/a%252fb", "/a%252fb"),
        ("/a:@!$&'()*+,=b", "/a:@!$&'()*+,=b"),
        // Slashes are merged.
        ("//a///b//", "/a/b/"),
        ("//", "/"),
        // Dot segments are resolved.
        ("/a/./b/.", "/a/b/"),
        ("/a/b/../c", "/a/c"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/.a/..b/...", "/.a/..b/..."),
    ] {
        let expected = if normal == "unreadable" { Readings::Unreadable } else { one(normal) };
        assert_eq!(readings(path), expected, "{path}");
    }
    assert!(matches!(readings("/a/b.c"), Readings::One(Cow::Borrowed("/a/b.c"))));
}

#[test]
fn a_path_that_servers_read_differently_has_two() {
    for (path, strict, lax) in [
        ("/a%2fb", "/a%2Fb", "/a/b"),
        ("/a%5cb", "/a%5Cb", "/a/b"),
        ("/a\\b", "/a%5Cb", "/a/b"),
        ("/pub/..%2fadmin", "/pub/..%2Fadmin", "/admin"),
        ("/pub/%2e%2e%2fadmin", "/pub/..%2Fadmin", "/admin"),
        ("/%2fadmin", "/%2Fadmin", "/admin"),
        ("/admin;v=1", "/admin;v=1", "/admin"),
        ("/pub/..;/admin", "/pub/..;/admin", "/admin"),
        ("/admin/;x/y", "/admin/;x/y", "/admin/y"),
        ("/a/b//../c", "/a/b/c", "/a/c"),
    ] {
        assert_eq!(readings(path), two(strict, lax), "{path}");
    }
}

#[test]
fn a_path_that_nobody_should_send_has_none() {
    for path in [
        "/..",
        "/../a",
        "/a/../../b",
        "/a%2f..%2f..%2f..%2fb",
        "/..;/a",
        "/a%00",
        "/a\0b",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%+1",
        "a",
        "a/../b",
        "http://h/a",
        "%2fa",
    ] {
        assert_eq!(readings(path), Readings::Unreadable, "{path:?}");
    }
}

#[test]
fn the_text_of_a_condition_is_spelled_like_a_path() {
    for (text, expected) in [
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/%61%c3%a9", "/a%C3%A9"),
        ("/é", "/%C3%A9"),
        ("/100%", "/100%25"),
        ("/%zz/%é", "/%25zz/%25%C3%A9"),
        ("/a%00", "/a%2500"),
        ("%", "%25"),
        ("", ""),
        ("/a/", "/a/"),
        ("/x;y", "/x;y"),
    ] {
        assert_eq!(condition(StringMatch::prefix(text)), StringMatch::prefix(expected), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_normal_form_of_a_normal_form_is_itself(
        parts in prop::collection::vec(prop::sample::select(vec![
            "/", "/", "a", ".", "..", "%2e", "%2f", "%5C", "\\", ";", "%25", "%61", "%20", "é", "x=1", "%00", "%", "//",
        ]), 0..10),
    ) {
        let path = format!("/{}", parts.concat());
        match readings(&path) {
            Readings::One(normal) => {
                prop_assert_eq!(readings(&normal), Readings::One((&*normal).into()));
                prop_assert!(!normal.contains("//") && !normal.contains("/./") && !normal.contains("/../"));
            }
            Readings::Two { strict, lax } => {
                // What is left may still be read in two ways, but its first reading is itself.
                match readings(&strict) {
                    Readings::One(again) => prop_assert_eq!(&*again, &*strict),
                    Readings::Two { strict: again, .. } => prop_assert_eq!(again, strict),
                    Readings::Unreadable => prop_assert!(false, "{} can't be read again", strict),
                }
                prop_assert_eq!(readings(&lax), Readings::One((&*lax).into()));
            }
            Readings::Unreadable => {}
        }
    }

    #[test]
    fn what_is_plain_is_its_own_normal_form(path in "/([a-c.%;2ef/]|//|/\\.){0,8}") {
        if is_plain(&path) {
            prop_assert_eq!(spelled(&path).and_then(|spelled| resolved(&spelled, true)), Some(path));
        }
    }

    #[test]
    fn no_path_makes_it_panic(path in any::<String>(), text in any::<String>()) {
        readings(&path);
        literal(&text);
    }
}
