use super::support::{problems, service, world};

fn check(what: &str, yaml: &str, expected: &[&str]) {
    let found = problems(&world(yaml));
    assert_eq!(found, expected, "{what}");
}

fn route(kind: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: r\n  namespace: shop\nspec:\n  \
         parentRefs:\n  - {parent}\n  rules:\n{rules}"
    )
}

const PARENT: &str = "{group: '', kind: Service, name: cart}";

fn with_cart(yaml: &str) -> String {
    format!("{yaml}{}", service("shop", "cart", "ports: [{name: http, port: 80}]"))
}

#[test]
fn routes_say_what_is_wrong_with_them_and_where() {
    check(
        "a missing Service as backend",
        &with_cart(&route(
            "HTTPRoute",
            PARENT,
            "  - backendRefs:\n    - name: cart\n      port: 80\n    - name: missing\n      port: 80\n",
        )),
        &[
            "x.yaml:13: error: HTTPRoute shop/r: spec.rules[0].backendRefs[1].name: there is no Service shop/missing; correct the name, or create the Service; until then its share of requests gets 500",
        ],
    );
    check(
        "a port that the Service does not have",
        &with_cart(&route("HTTPRoute", PARENT, "  - backendRefs:\n    - name: cart\n      port: 81\n")),
        &[
            "x.yaml:12: error: HTTPRoute shop/r: spec.rules[0].backendRefs[0].port: Service shop/cart has no TCP port 81; name one of the Service's ports; until then its share of requests gets 500",
        ],
    );
    check(
        "a missing Service as parent",
        &route("HTTPRoute", PARENT, "  - {}\n"),
        &[
            "x.yaml:8: error: HTTPRoute shop/r: spec.parentRefs[0].name: there is no Service shop/cart; correct the name, or create the Service",
        ],
    );
    check(
        "a port that the parent does not have",
        &with_cart(&route("HTTPRoute", "{group: '', kind: Service, name: cart, port: 8080}", "  - {}\n")),
        &[
            "x.yaml:8: error: HTTPRoute shop/r: spec.parentRefs[0].port: Service shop/cart has no TCP port 8080; name one of the Service's ports",
        ],
    );
    check(
        "HTTP on a port that is declared to be something else",
        &format!(
            "{}{}",
            route("HTTPRoute", PARENT, "  - {}\n"),
            service("shop", "cart", "ports: [{name: tcp, port: 80}]")
        ),
        &[
            "x.yaml:8: error: HTTPRoute shop/r: spec.parentRefs[0].name: the port of Service shop/cart is declared not to carry HTTP; set the port's appProtocol to http or grpc, or its name to http-...",
        ],
    );
    check("a parent that is not the mesh's", &route("HTTPRoute", "{name: gateway}", "  - {}\n"), &[]);
    check(
        "a filter that is not supported",
        &with_cart(&route("HTTPRoute", PARENT, "  - filters:\n    - type: ExternalAuth\n")),
        &[
            "x.yaml:11: error: HTTPRoute shop/r: spec.rules[0].filters[0].type: the filter ExternalAuth is not supported; remove the filter; until then the rule answers with 500",
        ],
    );
    check(
        "a bad regular expression",
        &with_cart(&route("HTTPRoute", PARENT, "  - matches:\n    - path:\n        type: Exact\n        value: /\n    - headers:\n      - {name: a, value: '(', type: RegularExpression}\n    backendRefs:\n    - {name: cart, port: 80}\n"))
            .replace("'('", "'a{2,1}'"),
        &["x.yaml:15: error: HTTPRoute shop/r: spec.rules[0].matches[1].headers[0].value: \"a{2,1}\" is not a valid regular expression: regex parse error: invalid repetition count range, the start must be <= the end; correct the condition"],
    );
    check(
        "a prefix rewrite without a prefix",
        &with_cart(&route(
            "HTTPRoute",
            PARENT,
            "  - matches:\n    - path: {type: Exact, value: /a}\n    filters:\n    - type: URLRewrite\n      urlRewrite:\n        path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}\n",
        )),
        &[
            "x.yaml:15: error: HTTPRoute shop/r: spec.rules[0].filters[0].urlRewrite.path: a prefix can only be replaced where all matches of the rule are of type PathPrefix; use ReplaceFullPath, or match on PathPrefix",
        ],
    );
    check(
        "timeouts that contradict each other",
        &with_cart(&route(
            "HTTPRoute",
            PARENT,
            "  - timeouts: {request: 1s, backendRequest: 2s}\n    backendRefs: [{name: cart, port: 80}]\n",
        )),
        &[
            "x.yaml:10: error: HTTPRoute shop/r: spec.rules[0].timeouts: backendRequest (2s) is longer than request (1s); make it the shorter one",
        ],
    );
}

#[test]
fn policies_say_what_is_wrong_with_them_and_where() {
    let policy = |kind: &str, rest: &str| {
        with_cart(&format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec:\n{rest}"
        ))
    };
    let target = "  targetRefs:\n  - kind: Service\n    name: cart\n";
    check(
        "a missing target",
        &policy("InboundPolicy", "  targetRefs:\n  - kind: Service\n    name: carts\n"),
        &[
            "x.yaml:7: error: InboundPolicy shop/p: spec.targetRefs[0].name: there is no Service shop/carts; correct the name, or create the Service; a policy is in the namespace of its targets",
        ],
    );
    check(
        "another namespace",
        &policy("InboundPolicy", "  targetRefs:\n  - kind: Namespace\n    name: other\n"),
        &[
            "x.yaml:7: error: InboundPolicy shop/p: spec.targetRefs[0].name: the policy is in namespace shop, not in other; put the policy into the namespace that it is for",
        ],
    );
    check(
        "a kind of target that the policy has no meaning for",
        &policy("BackendTrafficPolicy", "  targetRefs:\n  - kind: Namespace\n    name: shop\n"),
        &[
            "x.yaml:6: error: BackendTrafficPolicy shop/p: spec.targetRefs[0].kind: Namespace can't be a target; target one of: Service",
        ],
    );
    check(
        "a port that is not there",
        &policy("BackendTrafficPolicy", &format!("{target}    sectionName: grpc\n")),
        &[
            "x.yaml:8: error: BackendTrafficPolicy shop/p: spec.targetRefs[0].sectionName: Service shop/cart has no port named \"grpc\"; use the name of one of its ports",
        ],
    );
    check(
        "a hash of nothing",
        &policy("BackendTrafficPolicy", &format!("{target}  loadBalancer: {{algorithm: ConsistentHash}}\n")),
        &[
            "x.yaml:8: error: BackendTrafficPolicy shop/p: spec.loadBalancer.consistentHash: ConsistentHash needs to know what to hash; add consistentHash with a type",
        ],
    );
    check(
        "a collector that is not there",
        &policy(
            "TelemetryPolicy",
            &format!("{target}  tracing:\n    provider:\n      backendRef: {{name: otel}}\n"),
        ),
        &[
            "x.yaml:10: error: TelemetryPolicy shop/p: spec.tracing.provider.backendRef: there is no Service shop/otel with port 4317; correct it, or create the Service; until then spans go to the sidecar's own collector",
        ],
    );
    check(
        "conditions on requests without saying that requests are judged",
        &policy(
            "AuthorizationPolicy",
            &format!("{target}  action: ALLOW\n  rules:\n  - http: {{methods: [GET]}}\n"),
        ),
        &[
            "x.yaml:10: error: AuthorizationPolicy shop/p: spec.rules[0].http: conditions on requests need enforcementLevel: Application; set it; until then the policy is taken as if it were",
        ],
    );
    check(
        "a source that is not an identity",
        &policy(
            "AuthorizationPolicy",
            &format!(
                "{target}  action: DENY\n  rules:\n  - sources:\n    - {{type: SPIFFE, spiffe: 'mesh.test/a'}}\n"
            ),
        ),
        &[
            "x.yaml:11: error: AuthorizationPolicy shop/p: spec.rules[0].sources[0]: \"mesh.test/a\" is not a SPIFFE ID: it must start with \"spiffe://\"; correct it; until then it matches nothing",
        ],
    );
    let second = format!(
        "---\napiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: q, namespace: shop}}\nspec:\n{target}"
    );
    check(
        "two policies for one target",
        &format!("{}{second}", policy("InboundPolicy", target)),
        &[
            "x.yaml:19: warning: InboundPolicy shop/q: spec.targetRefs[0]: InboundPolicy shop/p is older and holds for the same target; merge the two policies, or remove one",
        ],
    );
}

#[test]
fn workloads_and_services_that_collide_are_reported() {
    let workload = |name: &str, mesh: u16| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  address: 127.0.0.1\n  \
             ports:\n  - {{port: 8080, meshPort: {mesh}}}\n"
        )
    };
    check(
        "one mesh port for two",
        &format!("{}{}", workload("a", 25001), workload("b", 25001)),
        &[
            "x.yaml:16: error: Workload default/b: spec.ports[0]: Workload default/a already serves 127.0.0.1:25001; give each workload of one address a meshPort of its own",
        ],
    );
    let at = |name: &str| service("shop", name, "clusterIP: 10.96.0.1, ports: [{port: 80}]");
    check(
        "one address for two Services",
        &format!("{}{}", at("a"), at("b")),
        &[
            "x.yaml:10: error: Service shop/b: spec.clusterIP: Service shop/a already has the address 10.96.0.1; give each Service an address of its own",
        ],
    );
}
