use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::model::{
    self, Authorization, ChainMatch, Cluster, Discovery, Domain, DownstreamTls, EndpointAddress, FilterChain,
    HeaderMutation, HeaderOp, HttpConnection, HttpFilter, LoadAssignment, LocalityEndpoints, Origin,
    PathMatch, PathRewrite, PerMillion, Permission, Policy, Principal, Protocol, Redirect, RetryOn,
    RetryPolicy, Route, RouteAction, RouteMatch, RouteSource, StringMatch, TcpProxy, TrafficDirection,
    UpstreamTls, VirtualHost,
};

use super::*;

/// A mesh of one service with two backends.
#[derive(Default)]
struct Mesh {
    clusters: Vec<Cluster>,
    assignments: Vec<LoadAssignment>,
    inbound: Vec<Listener>,
}

impl Resources for Mesh {
    fn routes(&self, _: &str) -> Option<&RouteConfiguration> {
        None
    }
    fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }
    fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Vec<&'a model::Endpoint> {
        let of_cluster = self.assignments.iter().filter(|assignment| assignment.name == cluster.name);
        of_cluster.flat_map(|assignment| assignment.endpoints()).collect()
    }
    fn inbound(&self, address: SocketAddr) -> Option<&Listener> {
        self.inbound.iter().find(|listener| listener.address == Some(address))
    }
}

impl Mesh {
    /// A cluster of one endpoint, whose sidecar lets in those whom `allowed` names.
    fn with(mut self, name: &str, address: &str, allowed: Option<&str>, strict: bool) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        self.clusters.push(cluster(name, Discovery::Eds(name.into())));
        self.assignments.push(LoadAssignment {
            drops: Vec::new(),
            overprovisioning: None,
            name: name.into(),
            localities: vec![LocalityEndpoints {
                locality: model::Locality::default(),
                priority: 0,
                weight: 1,
                endpoints: vec![model::Endpoint {
                    address: EndpointAddress::Socket(address),
                    additional_addresses: Vec::new(),
                    health: Health::Healthy,
                    weight: 1,
                    hostname: String::new(),
                    meshed: true,
                    identity: Some("spiffe://td/ns/shop/sa/cart".parse().unwrap()),
                    workload: "shop/cart".into(),
                }],
            }],
        });
        let filters = allowed.map(|id| HttpFilter::Authorization(allow(id))).into_iter().collect::<Vec<_>>();
        let tls = DownstreamTls { require_client_certificate: true, alpn: vec!["h2".into()] };
        let mut chains = vec![chain(Some(tls), http(Vec::new(), filters.clone()))];
        if !strict {
            chains.push(chain(None, http(Vec::new(), filters)));
        }
        let name = crate::address::inbound_listener(address);
        let listener = Listener::new(name, TrafficDirection::Inbound, chains);
        self.inbound.push(Listener { address: Some(address), ..listener });
        self
    }
}

fn cluster(name: &str, discovery: Discovery) -> Cluster {
    Cluster {
        tls: Some(UpstreamTls {
            sni: "outbound_.80_._.cart".into(),
            subject_alt_names: Vec::new(),
            alpn: Vec::new(),
            only_meshed_endpoints: true,
        }),
        ..Cluster::new(name, discovery)
    }
}

fn allow(id: &str) -> Authorization {
    Authorization {
        name: "allow".into(),
        action: model::Action::Allow,
        policies: vec![Policy {
            name: "shop/carts#0".into(),
            permissions: vec![Permission::UrlPath(StringMatch::exact("/v2/a"))],
            principals: vec![Principal::Authenticated(Some(StringMatch::exact(id)))],
        }],
        audit_only: false,
    }
}

fn chain(tls: Option<DownstreamTls>, protocol: Protocol) -> FilterChain {
    FilterChain {
        name: "main".into(),
        matches: ChainMatch::default(),
        tls,
        authorization: Vec::new(),
        protocol,
    }
}

fn http(routes: Vec<Route>, filters: Vec<HttpFilter>) -> Protocol {
    let host = VirtualHost::new("cart", vec![Domain::Any], routes);
    let configuration = RouteConfiguration::new("cart", vec![host]);
    Protocol::Http(HttpConnection { filters, ..HttpConnection::new(RouteSource::Inline(configuration)) })
}

fn outbound(protocol: Protocol) -> Listener {
    Listener::new("cart:80", TrafficDirection::Outbound, vec![chain(None, protocol)])
}

fn route(name: &str, path: PathMatch, action: RouteAction) -> Route {
    let matches = RouteMatch::new(path);
    Route {
        origin: Some(Origin {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: name.into(),
            rule: 0,
            matched: 0,
        }),
        ..Route::new(name, matches, action)
    }
}

fn forward(backends: &[(&str, u32)]) -> model::Forward {
    let backend = |&(cluster, weight): &(&str, u32)| model::Backend::new(cluster, weight);
    model::Forward {
        unknown_cluster_status: StatusCode::INTERNAL_SERVER_ERROR,
        ..model::Forward::new(backends.iter().map(backend).collect())
    }
}

fn ask(listener: &Listener, mesh: &Mesh, target: &str) -> Explanation {
    let client = "spiffe://td/ns/shop/sa/web".parse().unwrap();
    let headers = HeaderMap::new();
    let request = RequestView::new(&Method::GET, "cart.shop", target, &headers);
    let question =
        Question { client: Some(&client), source_ip: "127.0.0.1".parse().unwrap(), request: &request };
    let explanation = explain(&question, listener, mesh).unwrap();
    let text = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), explanation, "it can be read back");
    explanation
}

#[test]
fn a_request_is_followed_to_the_verdict_of_each_endpoint() {
    let mut forward = forward(&[("cart-v1", 90), ("cart-v2", 10)]);
    forward.path_rewrite = Some(PathRewrite::Prefix("/v2".into()));
    forward.timeouts.request = Some(Duration::from_secs(2));
    forward.retry = Some(RetryPolicy {
        headers: Vec::new(),
        request_headers: Vec::new(),
        rate_limited: None,
        on: vec![RetryOn::GatewayError, RetryOn::Status],
        statuses: vec![429],
        attempts: 2,
        per_try_timeout: Some(Duration::from_millis(250)),
        per_try_idle_timeout: None,
        backoff: Duration::ZERO,
        max_backoff: Duration::ZERO,
    });
    let change = |name: &'static str, value| HeaderMutation {
        name: HeaderName::from_static(name),
        value: HeaderValue::from_static(value).into(),
        op: HeaderOp::Set,
    };
    let mut taken = route("api", PathMatch::Segments("/api".into()), RouteAction::Forward(forward));
    taken.request_headers.change = vec![change("x-by", "tulle"), change("authorization", "secret")];
    let other = route("other", PathMatch::Exact("/x".into()), RouteAction::NonForwarding);
    let listener = outbound(http(vec![other, taken], Vec::new()));
    let web = "spiffe://td/ns/shop/sa/web";
    let mesh = Mesh::default().with("cart-v1", "10.0.0.1:80", Some(web), true).with(
        "cart-v2",
        "10.0.0.2:80",
        Some("spiffe://td/ns/shop/sa/other"),
        false,
    );

    let explanation = ask(&listener, &mesh, "/api/a?q=1");
    let route = explanation.route.as_ref().unwrap();
    assert_eq!(route.matched.as_ref().unwrap().name, "api");
    assert_eq!(route.missed[0].route.name, "other");
    let Some(Action::Forward(forward)) = &explanation.action else { panic!("{explanation:?}") };
    assert_eq!(forward.timeouts.request, Some(2000));
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!(retry.on, ["gateway-error", "retriable-status-codes", "429"]);
    assert_eq!((retry.attempts, retry.per_try_timeout), (2, Some(250)));
    let [v1, v2] = &forward.backends[..] else { panic!("{forward:?}") };
    assert_eq!((v1.share, v2.share), (90.0, 10.0));
    assert_eq!(v1.becomes.target, "/v2/a?q=1");
    assert_eq!(v1.request_headers, ["set x-by: tulle", "set authorization: [redacted]"]);
    let (to_v1, to_v2) = (&v1.endpoints[0], &v2.endpoints[0]);
    assert!(to_v1.mtls && to_v1.identity.is_some());
    let (by_v1, by_v2) = (to_v1.inbound.as_ref().unwrap(), to_v2.inbound.as_ref().unwrap());
    assert_eq!((by_v1.mtls_mode, by_v2.mtls_mode), (MtlsMode::Strict, MtlsMode::Permissive));
    assert!(by_v1.allowed(), "the rewritten path is what the policy asks for: {by_v1:?}");
    assert!(!by_v2.allowed());
    let near = by_v2.request.as_ref().unwrap().nearest.as_ref().unwrap();
    assert_eq!(near.first.actual.as_deref(), Some(web));
    assert_eq!(
        explanation.outcome,
        Outcome::Refused { status: 403, reason: "10.0.0.2:80 does not allow it".into() }
    );
}

#[test]
fn what_the_mesh_can_not_forward_says_why() {
    let to = |backends: &[(&str, u32)]| {
        let route = route("all", PathMatch::Prefix("/".into()), RouteAction::Forward(forward(backends)));
        outbound(http(vec![route], Vec::new()))
    };
    let refused = |listener: &Listener, mesh: &Mesh| match ask(listener, mesh, "/v2/a").outcome {
        Outcome::Refused { status, reason } => (status, reason),
        outcome => panic!("{outcome:?}"),
    };
    let mesh = Mesh::default().with("a", "10.0.0.1:80", None, true);
    assert_eq!(ask(&to(&[("a", 1)]), &mesh, "/").outcome, Outcome::Forwarded);
    assert_eq!(ask(&to(&[("a", 1), ("b", 0)]), &mesh, "/").outcome, Outcome::Forwarded);
    assert_eq!(refused(&to(&[("b", 1)]), &mesh), (500, "cluster b does not exist".into()));
    assert_eq!(refused(&to(&[("a", 0)]), &mesh).0, 500);
    let none = outbound(http(Vec::new(), Vec::new()));
    assert_eq!(refused(&none, &mesh), (404, "no route matches".into()));

    let mut empty = Mesh::default().with("a", "10.0.0.1:80", None, true);
    empty.assignments.clear();
    assert_eq!(refused(&to(&[("a", 1)]), &empty), (503, "cluster a has no healthy endpoint".into()));
    let mut plain = Mesh::default().with("a", "10.0.0.1:80", None, true);
    plain.clusters[0].tls = None;
    assert_eq!(refused(&to(&[("a", 1)]), &plain), (503, "10.0.0.1:80 takes no such connection".into()));
    let mut outside = Mesh::default();
    let name = model::HostPort { host: "example.org".into(), port: 443 };
    outside.clusters.push(cluster("a", Discovery::StrictDns(vec![name], model::DnsFamily::All)));
    assert_eq!(ask(&to(&[("a", 1)]), &outside, "/").outcome, Outcome::Forwarded);
}

#[test]
fn answers_of_the_mesh_itself_are_shown() {
    let redirect = Redirect {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: None,
        status: StatusCode::MOVED_PERMANENTLY,
        strip_query: false,
    };
    let mut moved = route("moved", PathMatch::Exact("/old".into()), RouteAction::Redirect(redirect));
    moved.matches.fraction = Some(PerMillion(1));
    let listener = outbound(http(vec![moved], Vec::new()));
    let explanation = ask(&listener, &Mesh::default(), "/old?a");
    let location = "https://cart.shop/old?a".into();
    assert_eq!(explanation.action, Some(Action::Redirect { status: 301, location }));
    assert_eq!(explanation.outcome, Outcome::Answered { status: 301 });
}

#[test]
fn bytes_are_followed_too() {
    let proxy = TcpProxy::new(vec![("a".into(), 1)]);
    let mut mesh = Mesh::default().with("a", "10.0.0.1:80", None, true);
    let listener = outbound(Protocol::Tcp(proxy));
    let explanation = ask(&listener, &mesh, "/");
    assert_eq!(explanation.route, None);
    let reason = "10.0.0.1:80 takes no such connection".into();
    assert_eq!(explanation.outcome, Outcome::Refused { status: 503, reason }, "its chain is for HTTP");
    let bytes = TcpProxy::new(vec![("inbound".into(), 1)]);
    mesh.inbound[0].chains[0].protocol = Protocol::Tcp(bytes);
    assert_eq!(ask(&listener, &mesh, "/").outcome, Outcome::Forwarded);
}
