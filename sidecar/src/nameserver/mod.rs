//! The resolver for the application: names of the mesh resolve where no cluster's DNS knows them, and all others as ever.
//!
//! ```text
//! application ── UDP, TCP ──► scope ─┬─► mesh ──► the control plane's names (xds), on demand
//!                                    └─► cache ──► upstream: the name servers of the host
//! ```
//!
//! In: queries of the application. Out: answers. What is not the mesh's goes to the host's name servers octet by octet,
//! and so do their answers: flags, EDNS and records of types that nobody here knows pass unchanged, but for the time that
//! has gone off a kept answer's TTLs. An answer that has expired is never given. All of this runs on the control thread;
//! what one client asks for, and how slowly it reads, costs the others nothing: queries, connections and octets are bounded.
//!
//! It stands on `hickory-proto` and sockets of its own. `hickory-server` is as small (some 90 kB), but takes apart and
//! rebuilds every message, starts a task for each datagram without a bound, and answers a connection's queries one by one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tulle_mesh::model::DnsName;

use self::cache::Cache;
use self::message::{Outline, Query, rcode, refuse};
use self::metrics::{Metrics, Source};
use self::scope::{Scope, scope};
use self::upstream::Upstream;
use crate::config;
use crate::telemetry::Telemetry;
use crate::xds::{MeshNames, NameAnswer};

mod cache;
mod mesh;
mod message;
mod metrics;
mod scope;
mod sockets;
mod tcp;
mod udp;
mod upstream;

pub(crate) use sockets::Sockets;

/// The most queries that are being answered at a time.
const MAX_QUERIES: usize = 1024;

/// The resolver, while it runs.
pub(crate) struct Running {
    _tasks: JoinSet<()>,
}

/// Answers on `sockets` until it is dropped. Needs a tokio runtime.
///
/// # Errors
/// When the sockets can't be registered with the runtime.
pub(crate) fn start(
    sockets: Sockets,
    config: &config::Config,
    names: MeshNames,
    telemetry: &Telemetry,
) -> std::io::Result<Running> {
    let settings = config.dns.as_ref();
    let servers = settings.map(crate::dns::name_servers).unwrap_or_default();
    if servers.is_empty() {
        tracing::warn!(
            "dns.upstream: there is no name server for names outside of the mesh: they don't resolve"
        );
    }
    let domain = settings.map(|dns| dns.cluster_domain.clone()).unwrap_or_default();
    let server = Nameserver::new(servers, domain.as_str(), names, config.outbound.demand_timeout, telemetry);
    let mut tasks = JoinSet::new();
    for socket in sockets.udp {
        tasks.spawn(udp::serve(tokio::net::UdpSocket::from_std(socket)?, Arc::clone(&server)));
    }
    for listener in sockets.tcp {
        tasks.spawn(tcp::serve(tokio::net::TcpListener::from_std(listener)?, Arc::clone(&server)));
    }
    Ok(Running { _tasks: tasks })
}

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// Where the octets of an answer go; `None`: there is none.
type Waiter = oneshot::Sender<Option<Arc<[u8]>>>;

/// What the sockets share.
struct Nameserver {
    names: MeshNames,
    /// How long a query waits for the control plane.
    patience: Duration,
    cluster_domain: String,
    upstream: Upstream,
    cache: Mutex<Cache>,
    /// Who waits for the answer to a question that is under way. So the same question is never asked twice at a time,
    /// also where the name servers ask this one.
    under_way: Mutex<HashMap<Vec<u8>, Vec<Waiter>>>,
    places: Arc<Semaphore>,
    metrics: Metrics,
}

impl Nameserver {
    fn new(
        servers: Vec<SocketAddr>,
        cluster_domain: &str,
        names: MeshNames,
        patience: Duration,
        telemetry: &Telemetry,
    ) -> Arc<Self> {
        let metrics = Metrics::new(&telemetry.metrics);
        Arc::new(Self {
            names,
            patience,
            cluster_domain: cluster_domain.into(),
            upstream: Upstream::new(servers, Arc::clone(&metrics.upstream_failures)),
            cache: Mutex::default(),
            under_way: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_QUERIES)),
            metrics,
        })
    }

    /// A place among the queries that are being answered, while there is one.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.metrics.overflows.increment();
        }
        place
    }

    /// The answer to a message of a client; `None` where silence is better.
    async fn answer(self: &Arc<Self>, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(error) => {
                self.metrics.malformed.increment();
                return refuse(bytes, error);
            }
        };
        let (source, answer) = self.resolve(&query).await;
        self.metrics.count(source, &answer);
        if transport == Transport::Udp && answer.len() > query.udp_limit() {
            return Some(query.truncated(&answer));
        }
        Some(answer)
    }

    async fn resolve(self: &Arc<Self>, query: &Query) -> (Source, Vec<u8>) {
        const INTERNET: u16 = 1;
        let plain = query.class == INTERNET && query.edns.is_none_or(|edns| edns.version == 0);
        let name = query.name.as_deref().filter(|_| plain);
        let Some(name) = name else { return self.relay(query).await };
        let whose = scope(name, &self.cluster_domain);
        match whose {
            Scope::Outside => self.relay(query).await,
            Scope::Nobody => (Source::Mesh, mesh::absent(query, &self.cluster_domain)),
            Scope::Mesh | Scope::Perhaps => match self.ask(name).await {
                NameAnswer::Held(held) => (Source::Mesh, self.held(query, held).await),
                NameAnswer::Absent if whose == Scope::Mesh => {
                    (Source::Mesh, mesh::absent(query, &self.cluster_domain))
                }
                NameAnswer::Absent => self.relay(query).await,
                NameAnswer::Unavailable => self.relay_unsure(query, name, whose).await,
            },
        }
    }

    /// What the control plane says of a name.
    async fn ask(&self, name: &str) -> NameAnswer {
        timeout(self.patience, self.names.ask(name)).await.unwrap_or(NameAnswer::Unavailable)
    }

    /// The answer for a name of the mesh. Where it stands for another name, that is looked up as well.
    async fn held(self: &Arc<Self>, query: &Query, first: Arc<DnsName>) -> Vec<u8> {
        let mut answer = mesh::Answer::new(query, &self.cluster_domain);
        let mut held = first;
        while let Some(target) = answer.add(&held) {
            let whose = scope(&target, &self.cluster_domain);
            let known = match whose {
                Scope::Mesh | Scope::Perhaps => self.ask(&target).await,
                Scope::Nobody | Scope::Outside => NameAnswer::Absent,
            };
            held = match known {
                NameAnswer::Held(next) => next,
                NameAnswer::Absent if matches!(whose, Scope::Perhaps | Scope::Outside) => {
                    let Some(question) = mesh::query_for(&target, query) else {
                        return query.failure(rcode::SERVER_FAILURE);
                    };
                    let (_, found) = self.relay(&question).await;
                    return answer.finish_with(&found);
                }
                NameAnswer::Absent => return answer.finish_absent(),
                NameAnswer::Unavailable => return query.failure(rcode::SERVER_FAILURE),
            };
        }
        answer.finish()
    }

    /// The name may be the mesh's, and the control plane is away. A good answer of the other name servers is one all the
    /// same; their "there is no such name" is not known to be true.
    async fn relay_unsure(self: &Arc<Self>, query: &Query, name: &str, whose: Scope) -> (Source, Vec<u8>) {
        let (source, answer) = self.relay(query).await;
        let others_may_have_it = whose == Scope::Perhaps && name.contains('.');
        let is_good = Outline::read(&answer, query).is_some_and(|outline| outline.answers);
        if is_good || others_may_have_it {
            (source, answer)
        } else {
            (Source::Mesh, query.failure(rcode::SERVER_FAILURE))
        }
    }

    /// The answer of the host's name servers, kept or new.
    async fn relay(self: &Arc<Self>, query: &Query) -> (Source, Vec<u8>) {
        if query.special {
            let found = self.upstream.ask(query).await;
            let answer = found.map(|(mut bytes, _)| {
                bytes[..2].copy_from_slice(&query.id());
                bytes
            });
            return (Source::Upstream, answer.unwrap_or_else(|| query.failure(rcode::SERVER_FAILURE)));
        }
        let key = query.key();
        if let Some(answer) = lock(&self.cache).get(&key, query, Instant::now()) {
            return (Source::Cache, answer);
        }
        let (waiter, answer) = oneshot::channel();
        let is_first = {
            let mut under_way = lock(&self.under_way);
            let waiters = under_way.entry(key.clone()).or_default();
            waiters.push(waiter);
            waiters.len() == 1
        };
        if is_first {
            // On its own, since others may wait for it when this client has gone away.
            let (server, query) = (Arc::clone(self), query.clone());
            tokio::spawn(async move { server.fetch(key, &query).await });
        }
        match answer.await {
            Ok(Some(bytes)) => {
                let mut answer = bytes.to_vec();
                message::revive(&mut answer, &[], 0, query);
                (Source::Upstream, answer)
            }
            Ok(None) | Err(_) => (Source::Upstream, query.failure(rcode::SERVER_FAILURE)),
        }
    }

    /// Asks the name servers on behalf of all who wait.
    async fn fetch(&self, key: Vec<u8>, query: &Query) {
        let found = self.upstream.ask(query).await;
        let bytes = found.map(|(bytes, outline)| {
            let bytes: Arc<[u8]> = bytes.into();
            let mut cache = lock(&self.cache);
            cache.keep(key.clone(), &bytes, outline, Instant::now());
            self.metrics.kept.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
            bytes
        });
        for waiter in lock(&self.under_way).remove(&key).into_iter().flatten() {
            // Whoever asked may have gone away.
            let _ = waiter.send(bytes.clone());
        }
    }
}

/// A panic while the lock was held leaves at worst an answer that is asked for again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
