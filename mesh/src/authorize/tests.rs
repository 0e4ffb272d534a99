use http::{HeaderMap, Method};

use super::*;
use crate::model::{HeaderMatch, HeaderTest, Permission, Policy, Principal, StringMatch};

mod properties;

const CART: &str = "spiffe://td/ns/shop/sa/cart";

/// Who asks for what; the rest of the facts is always the same.
#[derive(Clone, Debug)]
struct Asked {
    tls: bool,
    peer: Option<SpiffeId>,
    method: Method,
    /// `None` for a connection without HTTP.
    path: Option<String>,
    headers: HeaderMap,
}

impl Asked {
    fn path(path: &str) -> Self {
        Self { path: Some(path.into()), ..Self::bytes() }
    }

    fn bytes() -> Self {
        let peer = Some(CART.parse().unwrap());
        Self { tls: true, peer, method: Method::GET, path: None, headers: HeaderMap::new() }
    }

    fn with<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        let path = self.path.as_deref();
        let request = path.map(|path| RequestView::new(&self.method, "cart", path, &self.headers));
        ask(&Facts {
            tls: self.tls,
            peer: self.peer.as_ref(),
            source_ip: "::ffff:10.1.2.3".parse().unwrap(),
            connection_ip: "::ffff:10.2.1.3".parse().unwrap(),
            remote_ip: "::ffff:10.3.2.1".parse().unwrap(),
            destination: "10.0.0.9:8080".parse().unwrap(),
            server_name: Some("outbound_.80_._.cart"),
            request: request.as_ref(),
        })
    }
}

fn policy(name: &str, permission: Permission, principal: Principal) -> Policy {
    Policy { name: name.into(), permissions: vec![permission], principals: vec![principal] }
}

fn set(name: &str, action: Action, policies: Vec<Policy>) -> Authorization {
    Authorization { name: name.into(), action, policies, audit_only: false }
}

fn path(text: &str) -> Permission {
    Permission::UrlPath(StringMatch::exact(text))
}

fn below(text: &str) -> Permission {
    Permission::UrlPath(StringMatch::prefix(text))
}

fn not(permission: Permission) -> Permission {
    Permission::Not(Box::new(permission))
}

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch::new(name, HeaderTest::Value(StringMatch::exact(value)))
}

/// Whether one policy of this action lets it pass.
fn passes(action: Action, permission: Permission, asked: &Asked) -> bool {
    let authorizer =
        Authorizer::compile(vec![set("s", action, vec![policy("p", permission, Principal::Any)])]);
    asked.with(|facts| authorizer.check(facts).is_allowed())
}

#[test]
fn deny_comes_first_and_every_allow_set_must_match() {
    let on_path = |name: &str, text: &str| policy(name, below(text), Principal::Any);
    let authorizer = Authorizer::compile(vec![
        set("allow-a", Action::Allow, vec![on_path("a1", "/x"), on_path("a2", "/a")]),
        set("allow-b", Action::Allow, vec![on_path("b1", "/a/b")]),
        set("deny", Action::Deny, vec![on_path("d1", "/y"), on_path("d2", "/a/b/secret")]),
    ]);
    for (asked, expected) in [
        ("/a/b/c", Verdict::Allowed { by: Some("a2") }),
        ("/a/c", Verdict::Denied { set: "allow-b", by: None }),
        ("/x", Verdict::Denied { set: "allow-b", by: None }),
        ("/z", Verdict::Denied { set: "allow-a", by: None }),
        ("/a/b/secret", Verdict::Denied { set: "deny", by: Some("d2") }),
        ("/y", Verdict::Denied { set: "deny", by: Some("d1") }),
    ] {
        Asked::path(asked).with(|facts| assert_eq!(authorizer.check(facts), expected, "{asked}"));
    }
}

#[test]
fn without_sets_all_passes_and_an_allow_set_without_policies_refuses_all() {
    Asked::bytes().with(|facts| {
        let none = Authorizer::compile(vec![]);
        assert!(none.is_empty());
        assert_eq!(none.check(facts), Verdict::Allowed { by: None });
        let empty = Authorizer::compile(vec![set("s", Action::Allow, vec![])]);
        assert_eq!(empty.check(facts), Verdict::Denied { set: "s", by: None });
        assert_eq!(empty.explain(facts).nearest, None);
        let deny = Authorizer::compile(vec![set("s", Action::Deny, vec![])]);
        assert_eq!(deny.check(facts), Verdict::Allowed { by: None });
    });
}

#[test]
fn each_condition_sees_its_fact() {
    let mut asked = Asked::path("/a?q");
    asked.headers.insert("x", "1".parse().unwrap());
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let name = "outbound_.80_._.cart";
    let permissions = [
        (Permission::Any, true),
        (Permission::And(vec![]), true),
        (Permission::Or(vec![]), false),
        (Permission::And(vec![Permission::Any, path("/b")]), false),
        (Permission::Or(vec![path("/b"), Permission::Any]), true),
        (not(path("/a")), false),
        (Permission::Header(header(":method", "GET")), true),
        (Permission::Header(header(":method", "PUT")), false),
        (Permission::Header(header("x", "1")), true),
        (Permission::Header(header("y", "1")), false),
        (path("/a"), true),
        (path("/a?q"), false),
        (Permission::DestinationPort(8080), true),
        (Permission::DestinationPort(80), false),
        (Permission::DestinationPortRange(8000, 8080), true),
        (Permission::DestinationPortRange(8080, 8080), true),
        (Permission::DestinationPortRange(8081, u16::MAX), false),
        (Permission::DestinationPortRange(0, 8079), false),
        (Permission::DestinationIp(net("10.0.0.0/24")), true),
        (Permission::DestinationIp(net("10.0.1.0/24")), false),
        (Permission::RequestedServerName(StringMatch::exact(name)), true),
        (Permission::RequestedServerName(StringMatch::exact("cart")), false),
    ];
    for (permission, expected) in permissions {
        assert_eq!(passes(Action::Allow, permission.clone(), &asked), expected, "{permission:?}");
        assert_eq!(passes(Action::Deny, permission.clone(), &asked), !expected, "{permission:?}");
    }
    let cart = StringMatch::exact(CART);
    let principals = [
        (Principal::Any, true, true),
        (Principal::Authenticated(None), true, false),
        (Principal::Authenticated(Some(cart.clone())), true, false),
        (Principal::Authenticated(Some(StringMatch::exact("spiffe://td/other"))), false, false),
        (Principal::Not(Box::new(Principal::Authenticated(Some(cart)))), false, true),
        // The address is IPv4, mapped into IPv6.
        (Principal::SourceIp(net("10.1.0.0/16")), true, true),
        (Principal::SourceIp(net("10.2.0.0/16")), false, false),
        (Principal::ConnectionIp(net("10.2.0.0/16")), true, true),
        (Principal::ConnectionIp(net("10.1.0.0/16")), false, false),
        (Principal::RemoteIp(net("10.3.0.0/16")), true, true),
        (Principal::RemoteIp(net("10.1.0.0/16")), false, false),
        (Principal::Header(header("x", "1")), true, true),
        (Principal::UrlPath(StringMatch::exact("/b")), false, false),
        (Principal::And(vec![Principal::Any, Principal::Authenticated(None)]), true, false),
        (Principal::Or(vec![Principal::Or(vec![]), Principal::Authenticated(None)]), true, false),
    ];
    let anonymous = Asked { tls: false, peer: None, ..asked.clone() };
    for (principal, known, unknown) in principals {
        let only = policy("p", Permission::Any, principal.clone());
        let authorizer = Authorizer::compile(vec![set("s", Action::Allow, vec![only])]);
        for (asked, expected) in [(&asked, known), (&anonymous, unknown)] {
            let allowed = asked.with(|facts| authorizer.check(facts).is_allowed());
            assert_eq!(allowed, expected, "{principal:?} of {:?}", asked.peer);
        }
    }
}

#[test]
fn who_speaks_tls_is_authenticated_but_has_no_name_without_a_certificate() {
    let stranger = Asked { peer: None, ..Asked::path("/a") };
    for (principal, expected) in [
        (Principal::Authenticated(None), true),
        (Principal::Authenticated(Some(StringMatch::prefix("spiffe://"))), false),
        (Principal::Not(Box::new(Principal::Authenticated(Some(StringMatch::exact(CART))))), true),
        // As in Envoy, whoever asks for it.
        (Principal::Authenticated(Some(StringMatch::exact(""))), true),
    ] {
        for (action, expected) in [(Action::Allow, expected), (Action::Deny, !expected)] {
            let only = policy("p", Permission::Any, principal.clone());
            let authorizer = Authorizer::compile(vec![set("s", action, vec![only])]);
            let allowed = stranger.with(|facts| authorizer.check(facts).is_allowed());
            assert_eq!(allowed, expected, "{action:?} {principal:?}");
        }
    }
}

#[test]
fn both_a_permission_and_a_principal_must_hold() {
    let rule = Policy {
        name: "p".into(),
        permissions: vec![path("/x"), path("/a")],
        principals: vec![Principal::Authenticated(None)],
    };
    let authorizer = Authorizer::compile(vec![set("s", Action::Allow, vec![rule])]);
    let allowed = |asked: Asked| asked.with(|facts| authorizer.check(facts).is_allowed());
    assert!(allowed(Asked::path("/a")));
    assert!(!allowed(Asked::path("/b")));
    assert!(!allowed(Asked { tls: false, peer: None, ..Asked::path("/a") }));
}

#[test]
fn a_condition_on_http_counts_against_bytes_under_any_nesting() {
    let get = || Permission::Header(header(":method", "GET"));
    for unclear in [
        path("/a"),
        not(path("/a")),
        not(not(path("/a"))),
        get(),
        not(get()),
        Permission::And(vec![
            Permission::DestinationPort(8080),
            not(Permission::Or(vec![get(), path("/a")])),
        ]),
        Permission::Or(vec![
            Permission::DestinationPort(1),
            not(Permission::And(vec![get(), Permission::Any])),
        ]),
    ] {
        assert!(!passes(Action::Allow, unclear.clone(), &Asked::bytes()), "{unclear:?}");
        assert!(!passes(Action::Deny, unclear.clone(), &Asked::bytes()), "{unclear:?}");
    }
    // What is clear without HTTP decides as ever.
    let elsewhere = Permission::And(vec![Permission::DestinationPort(1), path("/a")]);
    assert!(passes(Action::Deny, elsewhere, &Asked::bytes()));
    let here = Permission::Or(vec![Permission::DestinationPort(8080), path("/a")]);
    assert!(passes(Action::Allow, here, &Asked::bytes()));
}

#[test]
fn no_spelling_of_a_path_passes_by_a_deny() {
    for asked in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x/..%5cadmin",
        "/x\\..\\admin",
        "/%2fadmin",
        "/admin;jsessionid=1",
        "/x/..;/admin",
        "/admin%00",
        "/admin%",
        "/../admin",
        "/x//../admin",
        "/admin?q",
    ] {
        let asked = Asked::path(asked);
        for permission in [path("/admin"), below("/admin"), not(not(path("/admin")))] {
            assert!(!passes(Action::Deny, permission.clone(), &asked), "{permission:?}: {:?}", asked.path);
        }
        // Nor does any that some server takes for it pass where all but it is allowed.
        assert!(!passes(Action::Allow, not(below("/admin")), &asked), "{:?}", asked.path);
    }
    for asked in ["/x/admin", "/adm", "/a%2Fb", "/v;x=1/y"] {
        assert!(passes(Action::Deny, path("/admin"), &Asked::path(asked)), "{asked}");
    }
}

#[test]
fn an_allow_needs_every_reading_of_a_path() {
    for (asked, expected) in [
        ("/pub/x", true),
        ("/pub/x%2Fy", true),
        ("/pub/x;v=1", true),
        ("//pub/x", true),
        ("/pub/..%2fadmin", false),
        ("/pub/..;/admin", false),
        ("/pub/%00", false),
        ("/pub/../admin", false),
    ] {
        assert_eq!(passes(Action::Allow, below("/pub/"), &Asked::path(asked)), expected, "{asked}");
    }
    for asked in ["/a b é".replace(' ', "%20"), "/a%20b%20%c3%a9".into()] {
        assert!(passes(Action::Allow, path("/a b é"), &Asked::path(&asked)), "{asked}");
    }
}

#[test]
fn audits_report_and_never_refuse() {
    let everything = |name| policy(name, Permission::Any, Principal::Any);
    let nothing = |name| policy(name, Permission::DestinationPort(1), Principal::Any);
    let only = |set: Authorization| Authorization { audit_only: true, ..set };
    let authorizer = Authorizer::compile(vec![
        set("audit", Action::Audit, vec![nothing("n"), everything("m")]),
        set("quiet", Action::Audit, vec![nothing("n")]),
        only(set("deny", Action::Deny, vec![everything("d")])),
        only(set("deny-quiet", Action::Deny, vec![nothing("n")])),
        only(set("allow", Action::Allow, vec![nothing("n")])),
        only(set("allow-quiet", Action::Allow, vec![everything("e")])),
    ]);
    let hit = |set, policy, effect| AuditHit { set, policy, effect };
    Asked::bytes().with(|facts| {
        assert_eq!(authorizer.check(facts), Verdict::Allowed { by: None });
        assert_eq!(
            authorizer.audits(facts).collect::<Vec<_>>(),
            [
                hit("audit", Some("m"), AuditEffect::Matched),
                hit("deny", Some("d"), AuditEffect::WouldDeny),
                hit("allow", None, AuditEffect::WouldDeny),
            ]
        );
        let silent = Authorizer::compile(vec![set("s", Action::Deny, vec![everything("p")])]);
        assert_eq!(silent.audits(facts).count(), 0);
    });
}

#[test]
fn a_refusal_by_default_names_the_nearest_policy() {
    let far = policy(
        "far",
        Permission::And(vec![path("/x"), Permission::DestinationPort(1)]),
        Principal::Authenticated(None),
    );
    let near = Policy {
        name: "near".into(),
        permissions: vec![
            Permission::And(vec![path("/x"), Permission::DestinationPort(1)]),
            Permission::And(vec![Permission::DestinationPort(8080), not(below("/a"))]),
        ],
        principals: vec![Principal::Any],
    };
    let sets = vec![
        set("first", Action::Allow, vec![policy("all", Permission::Any, Principal::Any)]),
        set("second", Action::Allow, vec![far, near]),
    ];
    let record = Asked::path("/a/b").with(|facts| Authorizer::compile(sets).explain(facts));
    assert_eq!((record.allowed, record.set.as_deref(), record.by.as_deref()), (false, Some("second"), None));
    assert_eq!(
        record.to_string(),
        r#"denied: no ALLOW policy of "second" matches; nearest is "near", 1 condition short: path: expected not starts with "/a", there is "/a/b"
  ALLOW "all": matches
  ALLOW "far": path: expected = "/x", there is "/a/b"
  ALLOW "near": path: expected not starts with "/a", there is "/a/b""#
    );
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["nearest"]["failing"], 1);
    assert_eq!(json["policies"][1]["auditOnly"], false);
    assert_eq!(json["policies"][1]["failed"]["on"], "path");
}

#[test]
fn a_record_shows_each_kind_of_fact_but_no_credential() {
    let net: ipnet::IpNet = "192.168.0.0/16".parse().unwrap();
    let cases = [
        (path("/x"), r#"path: expected = "/x", there is "/a%2Fb or, to some servers, /a/b""#),
        (Permission::DestinationPort(1), r#"port: expected 1, there is "8080""#),
        (
            Permission::DestinationIp(net),
            r#"destination address: expected in 192.168.0.0/16, there is "10.0.0.9""#,
        ),
        (
            Permission::RequestedServerName(StringMatch::exact("x")),
            r#"server name: expected = "x", there is "outbound_.80_._.cart""#,
        ),
        (Permission::Header(header(":method", "PUT")), r#"method: expected = "PUT", there is "GET""#),
        (Permission::Header(header("x", "1")), r#"header "x": expected = "1", there is none"#),
        (
            Permission::Header(header("authorization", "secret")),
            r#"header "authorization": expected [redacted], there is "[redacted]""#,
        ),
        (Permission::Or(vec![]), "conditions: expected nothing that could ever hold"),
        (not(Permission::Any), "conditions: expected nothing that could ever hold"),
    ];
    let mut asked = Asked::path("/a%2fb");
    asked.headers.insert("authorization", "Bearer secret".parse().unwrap());
    let failed = |permission: Permission, principal, asked: &Asked| {
        let only = policy("p", permission, principal);
        let authorizer = Authorizer::compile(vec![set("s", Action::Allow, vec![only])]);
        let record = asked.with(|facts| authorizer.explain(facts));
        assert!(!format!("{record:?}").contains("secret"), "{record:?}");
        record.policies[0].failed.clone().unwrap().to_string()
    };
    for (permission, expected) in cases {
        assert_eq!(failed(permission, Principal::Any, &asked), expected);
    }
    assert_eq!(
        failed(path("/x"), Principal::Any, &Asked::bytes()),
        r#"path: expected = "/x", there is "a connection without HTTP""#
    );
    assert_eq!(
        failed(path("/x"), Principal::Any, &Asked::path("/../x")),
        r#"path: expected = "/x", there is "/../x (no valid path)""#
    );
    assert_eq!(
        failed(Permission::Any, Principal::SourceIp(net), &asked),
        r#"source address: expected in 192.168.0.0/16, there is "::ffff:10.1.2.3""#
    );
    let anonymous = Asked { tls: false, peer: None, ..asked };
    assert_eq!(
        failed(Permission::Any, Principal::Authenticated(None), &anonymous),
        "identity: expected any, or none, over TLS, there is none"
    );
}
