//! Where a request would go, and why: the decision of the live configuration, with its record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Json, Response};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tulle_mesh::address::ServicePort;
use tulle_mesh::model::RouteAction;
use tulle_mesh::route::RequestView;

use super::types::{ChainExplanation, Explanation};
use super::{Admin, bad_request, dump};
use crate::snapshot::{ChainProtocol, Listener, Snapshot};
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
    let mut snapshots = admin.handle.snapshots.clone();
    let answered =
        |snapshot: &Arc<Snapshot>| snapshot.outbound.contains_key(&name) || snapshot.absent.contains(&name);
    let snapshot = match timeout(PATIENCE, snapshots.wait_for(answered)).await {
        Ok(Ok(snapshot)) => snapshot.clone(),
        Ok(Err(_)) | Err(_) => admin.handle.snapshots.borrow().clone(),
    };
    Json(asked.explain(&snapshot)).into_response()
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
                    asked.headers.append(name, text);
                }
                _ => return Err(format!("{key}: unknown; give host, method, path and header")),
            }
        }
        if asked.authority.is_empty() {
            return Err("host is missing: give host=<name>:<port>; without a port it is 80".into());
        }
        let name = asked.authority.to_ascii_lowercase();
        asked.destination = name.parse().unwrap_or_else(|_| ServicePort::new(name, 80));
        Ok(asked)
    }

    fn explain(&self, snapshot: &Snapshot) -> Explanation {
        let destination = self.destination.to_string();
        let mut explanation = Explanation {
            listener: None,
            reason: None,
            chains: Vec::new(),
            clusters: Vec::new(),
            destination: destination.clone(),
        };
        let Some(listener) = snapshot.outbound.get(destination.as_str()) else {
            explanation.reason = Some(if snapshot.absent.contains(destination.as_str()) {
                "the control plane knows no such service".into()
            } else {
                "the control plane has not answered, and nothing is cached".into()
            });
            return explanation;
        };
        explanation.listener = Some(listener.name.to_string());
        let mut clusters = Vec::new();
        explanation.chains = self.chains(listener, &mut clusters);
        clusters.sort();
        clusters.dedup();
        let known = clusters.iter().filter_map(|name| snapshot.clusters.get(name.as_str()));
        let now = Instant::now();
        explanation.clusters = known.map(|cluster| dump::cluster(cluster, now)).collect();
        explanation
    }

    fn chains(&self, listener: &Listener, clusters: &mut Vec<String>) -> Vec<ChainExplanation> {
        let request = RequestView::new(&self.method, &self.authority, &self.path, &self.headers);
        let chains = listener.chains.iter().zip(&listener.model.chains);
        let explained = chains.map(|(chain, model)| {
            let (route, action) = match &chain.protocol {
                ChainProtocol::Tcp(tcp) => {
                    clusters.extend(tcp.settings.backends.iter().map(|(name, _)| name.clone()));
                    (None, Some(dump::json(&tcp.settings.backends)))
                }
                ChainProtocol::Http(http) => {
                    // 0 is in every fraction: a rule for one in a hundred requests is one that may match.
                    let record = http.table.explain(&request, || 0);
                    let taken = record.matched.as_ref().and_then(|matched| {
                        let mut routes = http.table.routes();
                        routes.find(|(_, route)| route.name == matched.name)
                    });
                    let action = taken.map(|(_, route)| {
                        if let RouteAction::Forward(forward) = &route.action {
                            clusters.extend(forward.backends.iter().map(|backend| backend.cluster.clone()));
                        }
                        dump::json(&route.action)
                    });
                    (Some(dump::json(&record)), action)
                }
            };
            ChainExplanation { chain: model.name.clone(), matches: dump::json(&model.matches), route, action }
        });
        explained.collect()
    }
}
