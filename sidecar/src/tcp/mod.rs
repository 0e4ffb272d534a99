//! Raw TCP: connections whose bytes mean nothing to the mesh.
//!
//! In: a connection, and the weighted clusters of its chain. Out: the same bytes at an endpoint, and one record at the
//! end. Until the first byte was sent, an endpoint that can't be reached is no reason to fail: the next one is tried.
//! Ends are carried as they came, an orderly one as such and a reset as a reset.

pub(crate) mod copy;
pub(crate) mod passthrough;
mod splice;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use smallvec::SmallVec;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{AccessLog, MaxDuration, TrafficDirection};
use tulle_mesh::route::split;

use self::copy::{End, Limits, Relayed, relay};
use crate::balance::{Cluster, InFlight, Limit, Outcome, Permit, Pick, hash};
use crate::io::Stream;
use crate::snapshot::TcpRoutes;
use crate::telemetry::metrics::TcpSeries;
use crate::telemetry::record::{ConnectionRecord, Failure};
use crate::tls::Material;
use crate::upstream::{ConnectError, Connection, connect};
use crate::worker::Worker;

/// A downstream connection of bytes.
pub(crate) struct Session<'a> {
    /// Who carries it.
    pub(crate) worker: &'a Rc<Worker>,
    /// On which side of the application it is.
    pub(crate) direction: TrafficDirection,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// The address that is meant, where the client has named one.
    pub(crate) original: Option<SocketAddr>,
    /// Whom the client proved to be.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// When it was accepted, by the calendar.
    pub(crate) start: SystemTime,
    /// When it was accepted.
    pub(crate) begun: Instant,
}

/// The way of a session to one of the backends of its chain.
pub(crate) struct Route<'a> {
    cluster: Option<Arc<Cluster>>,
    series: &'a TcpSeries,
    settings: &'a tulle_mesh::model::TcpProxy,
    hash: Option<u64>,
    /// When the connection ends in any case.
    until: Option<Instant>,
}

/// A connection to an endpoint, as its load.
pub(crate) struct Upstream {
    connection: Connection,
    in_flight: InFlight,
    /// What the endpoint has said before anybody asked.
    said: Vec<u8>,
    /// How its connection failed while it was listened to.
    failed: Option<io::Error>,
    _permit: Permit,
}

/// Why there is no upstream connection.
#[derive(Debug)]
pub(crate) struct NoUpstream {
    token: &'static str,
    details: String,
    endpoint: Option<SocketAddr>,
}

impl<'a> Route<'a> {
    /// Draws a backend for a connection; `None` when none has a weight.
    pub(crate) fn draw(routes: &'a TcpRoutes, session: &Session<'_>) -> Option<Self> {
        let Session { worker, original, client, begun, .. } = *session;
        let weights = routes.backends.iter().map(|(_, weight, _)| *weight);
        let (cluster, _, series) = &routes.backends[split::choose(weights, worker.draw())?];
        let cluster = cluster.as_ref().map(|cluster| match original {
            Some(address) if cluster.is_original_destination() => worker.originals.of(cluster, address),
            _ => cluster.clone(),
        });
        let settings = &routes.settings;
        let hash = settings.hashes_source_ip.then(|| hash(client.ip().to_string().as_bytes()));
        let until = settings.max_duration.and_then(|max| begun.checked_add(lasting(max, worker)));
        Some(Self { cluster, series, settings, hash, until })
    }

    /// Connects to an endpoint of the backend, trying others where that fails. Cancel-safe: nothing is sent.
    ///
    /// # Errors
    /// When the cluster is missing, empty or full, or none of the endpoints that were tried can be reached.
    pub(crate) async fn connect(
        &self,
        worker: &Worker,
        material: Option<&Arc<Material>>,
    ) -> Result<Upstream, NoUpstream> {
        let Some(cluster) = &self.cluster else {
            return Err(NoUpstream::new("destination_not_found", "the backend's cluster does not exist"));
        };
        let permit = cluster
            .permit(Limit::Connections)
            .map_err(|reached| NoUpstream::new("connection_limit_reached", reached.to_string()))?;
        let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
        let mut last =
            NoUpstream::new("destination_unavailable", format!("{} has no endpoints", cluster.name));
        let most = usize::try_from(self.settings.max_connect_attempts).unwrap_or(usize::MAX);
        while tried.len() < most {
            let begun = Instant::now();
            let pick = Pick { now: begun, random: worker.draw_u64(), hash: self.hash, tried: &tried };
            let Some(endpoint) = cluster.pick(&pick).ok().filter(|e| !tried.contains(&e.id)).cloned() else {
                break;
            };
            tried.push(endpoint.id);
            let in_flight = cluster.begin(&endpoint);
            match connect(cluster, &endpoint, material, None).await {
                Ok(connection) => {
                    let now = Instant::now();
                    in_flight.observe(now - begun, now);
                    in_flight.report(Outcome::Success, now, worker.draw_u64());
                    let said = Vec::new();
                    return Ok(Upstream { connection, in_flight, said, failed: None, _permit: permit });
                }
                Err(error) => {
                    in_flight.report(Outcome::Unreachable, Instant::now(), worker.draw_u64());
                    last = NoUpstream::connecting(&error, endpoint.address);
                }
            }
        }
        Err(last)
    }

    /// How long nothing may move, and when it all ends.
    fn limits(&self) -> Limits {
        let idle = self.settings.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT);
        Limits { idle: Some(idle).filter(|idle| !idle.is_zero()), until: self.until.map(Into::into) }
    }

    /// How long nobody may say anything; `None`: however long.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let Limits { idle, until } = self.limits();
        let left = until.map(|until| until.saturating_duration_since(tokio::time::Instant::now()));
        idle.into_iter().chain(left).min()
    }
}

/// How long a connection may last: the more the luckier.
fn lasting(max: MaxDuration, worker: &Worker) -> Duration {
    let luck = f64::from(worker.draw()) / f64::from(u32::MAX);
    max.least + max.least.mul_f64(f64::from(max.jitter.0) / 1_000_000.0 * luck)
}

/// Envoy's default for its TCP proxy.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

impl Session<'_> {
    /// Carries a connection from its start to its end.
    pub(crate) async fn run(&self, mut client: Stream, routes: &TcpRoutes, material: Option<&Arc<Material>>) {
        let Some(route) = Route::draw(routes, self) else {
            return client.reset();
        };
        let ending = match route.connect(self.worker, material).await {
            Ok(upstream) => self.carry(&mut client, &route, upstream).await,
            Err(error) => self.refuse(&route, &error),
        };
        ending.apply(client);
    }

    /// Carries bytes until the end, first those that the endpoint has said already.
    pub(crate) async fn carry(&self, client: &mut Stream, route: &Route<'_>, upstream: Upstream) -> Ending {
        let Upstream { connection, in_flight, said, failed, _permit } = upstream;
        let mut stream = connection.stream;
        let relayed = match failed {
            None => relay(client, &mut stream, said, route.limits()).await,
            Some(error) => Relayed { forward: 0, back: 0, spliced: 0, end: End::Second(error) },
        };
        let ending = Ending::of(&relayed.end);
        if ending == Ending::Reset {
            stream.reset();
        }
        let mut details = String::new();
        self.worker.telemetry.connection(&ConnectionRecord {
            received: relayed.forward,
            sent: relayed.back,
            spliced: relayed.spliced,
            error: relayed.end.failure(&mut details),
            cluster: &in_flight.cluster().name,
            endpoint: Some(in_flight.endpoint().address),
            peer: self.identity.or(connection.peer.as_ref()),
            ..self.record(route.series, route.settings.access_log.as_ref())
        });
        ending
    }

    /// Records that the connection can't be carried.
    pub(crate) fn refuse(&self, route: &Route<'_>, error: &NoUpstream) -> Ending {
        self.worker.telemetry.connection(&ConnectionRecord {
            error: Some(Failure {
                token: error.token,
                flags: if error.endpoint.is_some() { "UF" } else { "UH" },
                details: &error.details,
            }),
            cluster: route.cluster.as_ref().map_or("", |cluster| &cluster.name),
            endpoint: error.endpoint,
            ..self.record(route.series, route.settings.access_log.as_ref())
        });
        Ending::Reset
    }

    fn record<'r>(
        &'r self,
        series: &'r TcpSeries,
        access_log: Option<&'r AccessLog>,
    ) -> ConnectionRecord<'r> {
        ConnectionRecord {
            series,
            direction: self.direction,
            access_log,
            draw: if access_log.is_some_and(|log| log.filter.is_some()) { self.worker.draw() } else { 0 },
            start: self.start,
            duration: self.begun.elapsed(),
            received: 0,
            sent: 0,
            spliced: 0,
            error: None,
            cluster: "",
            endpoint: None,
            peer: self.identity,
            client: self.client,
        }
    }
}

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Ending {
    /// It has been closed by both sides.
    Orderly,
    /// It is reset, so that the client can't take what it got for all there is.
    Reset,
}

impl Ending {
    /// For a relay that ended so.
    fn of(end: &End) -> Self {
        match end {
            End::Closed => Self::Orderly,
            End::Idle | End::Overdue | End::First(_) | End::Second(_) => Self::Reset,
        }
    }

    /// Ends the client's connection.
    pub(crate) fn apply(self, client: Stream) {
        match self {
            Self::Orderly => drop(client),
            Self::Reset => client.reset(),
        }
    }
}

impl End {
    /// As what it counts, in words in `details`; `None` for an orderly end.
    fn failure<'d>(&self, details: &'d mut String) -> Option<Failure<'d>> {
        let token = match self {
            Self::Closed => return None,
            Self::Idle | Self::Overdue => "connection_timeout",
            Self::First(_) | Self::Second(_) => "connection_terminated",
        };
        *details = match self {
            Self::First(error) => format!("the client's connection failed: {error}"),
            Self::Second(error) => format!("the endpoint's connection failed: {error}"),
            Self::Overdue => "it has lasted for as long as it may".to_owned(),
            Self::Closed | Self::Idle => "nothing moved for too long".to_owned(),
        };
        Some(Failure { token, flags: "-", details })
    }
}

impl Upstream {
    /// Waits until the endpoint says something of its own accord, or ends; either is kept for [`Session::carry`].
    /// Cancel-safe.
    pub(crate) async fn speaks(&mut self) {
        self.failed = copy::listen(&mut self.connection.stream, &mut self.said).await.err();
    }
}

impl NoUpstream {
    fn new(token: &'static str, details: impl Into<String>) -> Self {
        Self { token, details: details.into(), endpoint: None }
    }

    fn connecting(error: &ConnectError, endpoint: SocketAddr) -> Self {
        Self { token: error.token(), details: format!("{endpoint}: {error}"), endpoint: Some(endpoint) }
    }
}
