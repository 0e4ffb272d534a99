//! Where a request would go, and why: the decision of the live configuration, with its record.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Json, Response};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tulle_mesh::address::ServicePort;
use tulle_mesh::explain::{self, Question, Resources};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{Cluster, Endpoint, Listener, RouteConfiguration};
use tulle_mesh::route::RequestView;

use super::types::Explanation;
use super::{Admin, bad_request, dump};
use crate::app::InForce;
use crate::snapshot::{ChainProtocol, Snapshot};
use crate::xds::Demand;

/// `GET` or `POST /explain?host=&method=&path=&header=name:value`
pub(super) async fn explain(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let asked = match Asked::parse(query.as_deref().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(reason) => return bad_request(&reason),
    };
    let name: Arc<str> = asked.destination.to_string().into();
    // If the sidecar is about to end, there is nobody to answer: what is known has to do.
    let _ = admin.handle.demands.send(Demand { name: name.clone() });
    let mut in_force = admin.in_force.clone();
    let answered = |InForce { snapshot, .. }: &InForce| {
        snapshot.outbound.contains_key(&name) || snapshot.absent.contains(&name)
    };
    // An answer that does not come in time is missing in what is shown, and that says so.
    let _ = timeout(PATIENCE, in_force.wait_for(answered)).await;
    let snapshot = in_force.borrow().snapshot.clone();
    let material = admin.handle.material.borrow().clone();
    let own = material.and_then(|material| material.leaf.uris.first()?.parse().ok());
    Json(asked.explain(&snapshot, own.as_ref())).into_response()
}

/// How long configuration is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The request that is asked about.
struct Asked {
    destination: ServicePort,
    authority: String,
    method: Method,
    path: String,
    headers: HeaderMap,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self {
            destination: ServicePort::new("", 80),
            authority: String::new(),
            method: Method::GET,
            path: "/".into(),
            headers: HeaderMap::new(),
        };
        let mut given = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| format!("{key}: it is not UTF-8 once percent-decoded"))?;
            match key {
                "host" => asked.authority = value.into(),
                "method" => {
                    asked.method = value.parse().map_err(|_| format!("method: {value:?} is not a method"))?;
                }
                "path" if value.starts_with('/') => asked.path = value.into(),
                "path" => return Err(format!("path: {value:?} does not start with \"/\"")),
                "header" => {
                    let (name, text) = value
                        .split_once(':')
                        .ok_or_else(|| format!("header: write name:value, not {value:?}"))?;
                    let name: HeaderName = name
                        .trim()
                        .parse()
                        .map_err(|_| format!("header: {name:?} is not a header's name"))?;
                    let text: HeaderValue =
                        text.trim().parse().map_err(|_| format!("header: {name} can't have this value"))?;
                    match (name == header::HOST, text.to_str()) {
                        (true, Ok(host)) => given = Some(host.to_owned()),
                        (true, Err(_)) => return Err("header: a host is plain ASCII".into()),
                        (false, _) => drop(asked.headers.append(name, text)),
                    }
                }
                _ => return Err(format!("{key}: unknown; give host, method, path and header")),
            }
        }
        if asked.authority.is_empty() {
            return Err("host is missing: give host=<name>:<port>; without a port it is 80".into());
        }
        let name = asked.authority.to_ascii_lowercase();
        asked.destination = name.parse().unwrap_or_else(|_| ServicePort::new(name, 80));
        asked.authority = given.unwrap_or(asked.authority);
        Ok(asked)
    }

    /// `client` is the workload's own identity, once a certificate has told it.
    fn explain(&self, snapshot: &Snapshot, client: Option<&SpiffeId>) -> Explanation {
        let destination = self.destination.to_string();
        let mut answer = Explanation { reason: None, explanation: None, clusters: Vec::new(), destination };
        let Some(listener) = snapshot.outbound.get(answer.destination.as_str()) else {
            answer.reason = Some(if snapshot.absent.contains(answer.destination.as_str()) {
                "the control plane knows no such service".into()
            } else {
                "the control plane has not answered, and nothing is cached".into()
            });
            return answer;
        };
        let request = RequestView::new(&self.method, &self.authority, &self.path, &self.headers);
        // Which of this host's addresses a peer sees is decided when the connection is made.
        let source_ip = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let question = Question { client, source_ip, request: &request };
        match explain::explain(&question, &listener.model, &Held(snapshot)) {
            Ok(explanation) => {
                let now = Instant::now();
                let held = explanation.clusters().filter_map(|name| snapshot.clusters.get(name));
                answer.clusters = held.map(|cluster| dump::cluster(cluster, now)).collect();
                answer.explanation = Some(explanation);
            }
            Err(error) => answer.reason = Some(error.to_string()),
        }
        answer
    }
}

/// What this sidecar holds: its own listeners, and the clusters that it has asked for.
struct Held<'a>(&'a Snapshot);

impl Resources for Held<'_> {
    fn routes(&self, name: &str) -> Option<&RouteConfiguration> {
        let chains = self.0.outbound.values().flat_map(|listener| &listener.chains);
        let mut tables = chains.filter_map(|chain| match &chain.protocol {
            ChainProtocol::Http(http) => Some(&http.table),
            ChainProtocol::Tcp(_) => None,
        });
        tables.find(|table| table.name() == name).map(|table| table.configuration())
    }

    fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.0.clusters.get(name).map(|cluster| &*cluster.model)
    }

    fn endpoints<'a>(&'a self, cluster: &'a Cluster) -> Vec<&'a Endpoint> {
        let held = self.0.clusters.get(cluster.name.as_str());
        held.into_iter()
            .flat_map(|cluster| cluster.endpoints.iter())
            .map(|endpoint| &endpoint.model)
            .collect()
    }

    fn inbound(&self, address: SocketAddr) -> Option<&Listener> {
        self.0.inbound_at(address).map(|listener| &*listener.model)
    }
}
