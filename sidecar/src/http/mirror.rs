//! Copies of requests for other backends, whose answers nobody sees.
//!
//! A copy is made when the request itself has been answered, from what was kept of its body for retries: so it never
//! holds the request up, and a body above that limit, or one that still streams, is not copied. Copies of Tulle's own routes keep
//! their Host: Gateway API's RequestMirror asks for no other, and backends that route by Host would not know it.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use tulle_mesh::model::{Mirror, MirrorHost};

use super::body::Body;
use super::exchange::Exchange;
use super::forward::{Plan, version};
use super::headers;
use super::proxy::Proxy;
use super::server::Interim;
use super::words::{Moment, Words};
use crate::balance::{Cluster, InFlight, Limit, Outcome, Permit, Pick};
use crate::snapshot::Current;
use crate::upstream::SendOptions;
use crate::worker::Worker;

impl Proxy {
    /// Sends the copies that the route asks for.
    pub(super) fn mirror(&self, exchange: &Exchange, plan: &Plan<'_>) {
        let mirrors = plan.forward.mirrors.iter().zip(&plan.runtime.mirrors);
        for (mirror, cluster) in mirrors {
            let Some(cluster) = cluster.as_ref().filter(|_| mirror.fraction.hit(self.worker.draw())) else {
                continue;
            };
            if let Some(copy) = self.copy(exchange, plan, mirror, cluster) {
                // Configured, and beside the request's way: the one task that a request may cost.
                tokio::task::spawn_local(copy.send());
            }
        }
    }

    fn copy(
        &self,
        exchange: &Exchange,
        plan: &Plan<'_>,
        mirror: &Mirror,
        cluster: &Arc<Cluster>,
    ) -> Option<Copied> {
        let Some(body) = exchange.body.whole() else {
            tracing::debug!(cluster = %cluster.name, "not mirrored: the body was too long or had not ended");
            return None;
        };
        let pick = Pick { now: Instant::now(), random: self.worker.draw_u64(), hash: None, tried: &[] };
        let endpoint = cluster.pick(&pick).ok()?;
        let permit = cluster.permit(Limit::Requests).ok()?;
        let mut request = self.outgoing(exchange, plan, endpoint, 0, body.body());
        Words::new(exchange, Moment::Request).change(&mirror.request_headers, request.headers_mut());
        let authority = headers::authority(&exchange.request);
        rename(&mirror.host, authority, request.headers_mut());
        Some(Copied {
            worker: self.worker.clone(),
            current: exchange.current.clone()?,
            request,
            in_flight: cluster.begin(endpoint),
            _permit: permit,
        })
    }
}

/// Gives a copy its own host. `authority` is that of the request as it came.
fn rename(host: &MirrorHost, authority: &str, headers: &mut HeaderMap) {
    let new = match host {
        MirrorHost::Kept => return,
        MirrorHost::Shadow => {
            let sent = headers.get(HOST).map_or(Some(authority), |host| host.to_str().ok());
            HeaderValue::try_from(shadow(sent.unwrap_or(authority)))
        }
        MirrorHost::Literal(host) => HeaderValue::from_str(host),
    };
    // A host that no header could hold has come with no request.
    if let Ok(new) = new {
        headers.insert(HOST, new);
    }
}

fn shadow(host: &str) -> String {
    let port = host
        .rfind(':')
        .filter(|at| !host.ends_with(']') && host[at + 1..].bytes().all(|b| b.is_ascii_digit()));
    let (name, port) = host.split_at(port.unwrap_or(host.len()));
    format!("{name}-shadow{port}")
}

/// A copy on its way.
struct Copied {
    worker: Rc<Worker>,
    current: Current,
    request: Request<Body>,
    in_flight: InFlight,
    _permit: Permit,
}

impl Copied {
    async fn send(self) {
        let cluster = self.in_flight.cluster();
        let options = SendOptions {
            cluster,
            tls: self.current.tls.as_ref(),
            version: version(cluster, self.request.version()),
            interim: &Interim::default(),
            proven: &OnceCell::new(),
        };
        let begun = Instant::now();
        let sent = self.worker.pools.send(self.in_flight.endpoint(), self.request, options).await;
        let now = Instant::now();
        let outcome = match sent {
            Ok(answer) => {
                self.in_flight.observe(now.saturating_duration_since(begun), now);
                let outcome = Outcome::of(answer.response.status());
                // Read to its end, so that the connection can be used again.
                let mut body = answer.response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                outcome
            }
            Err(error) => {
                tracing::debug!(cluster = %cluster.name, ?error, "a mirrored request failed");
                Outcome::Lost
            }
        };
        self.in_flight.report(outcome, Instant::now(), self.worker.draw_u64());
    }
}
