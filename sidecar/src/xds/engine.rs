//! What happens with each demand, response and timer. No I/O but the file of the last good configuration, no waiting:
//! [`control`](super::control) waits, and calls.
//!
//! The order of effects: the state changes, subscriptions follow, the snapshot is published (which wakes whoever waits
//! for it), and only once all workers serve from it a response is acknowledged.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::envoy::service::status::v3::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tulle_mesh::xds::Kind;

use super::bundle::{is_full, trust};
use super::cache::{Cache, Knowledge, Names};
use super::client_status::client_config;
use super::disk::Disk;
use super::interest::Interest;
use super::names::{NameAnswer, NameQuestion};
use super::status::{Status, StreamStatus};
use super::stream::Event;
use super::subscribe::{Subscriptions, kind_of};
use crate::dns::Watched;
use crate::snapshot::{Builder, Snapshot, Sources, hosts_of};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{Counter, Gauge};
use crate::tls::Rotation;

/// How long the control plane may take to answer for a resource (gRFC A57).
const RESOURCE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often what is idle is looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How long the control plane may be away until questions are not kept waiting for it.
const AWAY: Duration = Duration::from_millis(500);
/// How long changes are gathered before they are written to disk.
const SAVE_DELAY: Duration = Duration::from_secs(2);

/// The state of the configuration.
pub(super) struct Engine {
    pub(super) cache: Cache,
    pub(super) interest: Interest,
    pub(super) subscriptions: Subscriptions,
    pub(super) builder: Builder,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) rotation: Arc<Mutex<Rotation>>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) disk: Option<Disk>,
    pub(super) status: StreamStatus,
    pub(super) stream_open: Arc<Gauge>,
    /// Accepted and rejected ones.
    pub(super) responses: [Arc<Counter>; 2],
    /// What is needed, as of the last [`Engine::flush`].
    pub(super) wanted: Names,
    pub(super) requests: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    /// Responses that have come since the last [`Engine::flush`].
    pub(super) answers: Vec<Answer>,
    /// Those that are to be acknowledged once the snapshot of that generation is in force, oldest first.
    pub(super) unacknowledged: VecDeque<(u64, Answer)>,
    /// Until when each name that the control plane was asked for should be answered.
    pub(super) deadlines: HashMap<(Kind, Arc<str>), Instant>,
    /// Questions that have no answer yet.
    pub(super) questions: Vec<NameQuestion>,
    /// Since when there is no stream.
    pub(super) closed_at: Option<Instant>,
    pub(super) changed: bool,
    pub(super) save_at: Option<Instant>,
    pub(super) sweep_at: Instant,
}

/// What someone asks of the configuration.
pub(super) enum Inspection {
    /// How it stands.
    Status(oneshot::Sender<Status>),
    /// All resources, as CSDS tells them.
    Resources(oneshot::Sender<Box<ClientConfig>>),
}

/// An answer to a response: type, nonce, what is wrong.
pub(super) type Answer = (String, String, Result<(), Vec<String>>);

/// What a sidecar needs before it takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// It holds a certificate.
    pub(crate) certificate: bool,
    /// The listeners of its inbound ports are in force, or the control plane says that there are none.
    pub(crate) configuration: bool,
}

impl Engine {
    /// Takes what is on disk, and what the configuration file asks for.
    pub(super) fn start(&mut self, names: &mut Watched, now: Instant) {
        self.sweep_at = now + SWEEP;
        match self.disk.as_ref().map(|disk| disk.load(&mut self.cache)) {
            Some(Ok(Some(asked))) => {
                self.status.from_disk = true;
                for name in asked.listeners {
                    self.demand(name, now);
                }
                for name in asked.names {
                    self.interest.demand_name(name, now);
                }
                tracing::info!(
                    "serving from the last good configuration on disk until the control plane answers"
                );
            }
            Some(Err(error)) => tracing::warn!("the configuration on disk is ignored: {error}"),
            Some(Ok(None)) | None => {}
        }
        self.changed = true;
        self.flush(names, now);
    }

    /// Traffic asks for a listener.
    pub(super) fn demand(&mut self, name: Arc<str>, now: Instant) {
        let Self { interest, cache, builder, .. } = self;
        self.changed |= interest.demand(name, now, |name| builder.last_use(cache.listener(name)?.0));
    }

    /// The resolver asks for a name. Returns whether the control plane has to be asked.
    pub(super) fn ask(&mut self, question: NameQuestion, now: Instant) -> bool {
        let news = self.interest.demand_name(Arc::clone(&question.name), now);
        match self.name(&question.name, now) {
            // Whoever asked may have gone away.
            Some(answer) => drop(question.answer.send(answer)),
            None => self.questions.push(question),
        }
        news
    }

    /// What is known of a name; `None` where the control plane is about to say.
    fn name(&self, name: &str, now: Instant) -> Option<NameAnswer> {
        if let Some(held) = self.cache.dns(name) {
            return Some(NameAnswer::Held(Arc::clone(held)));
        }
        let away = self.closed_at.is_some_and(|at| now.saturating_duration_since(at) >= AWAY);
        match self.cache.knowledge(Kind::Dns, name) {
            Knowledge::Absent => Some(NameAnswer::Absent),
            Knowledge::Awaited if !away => None,
            _ => Some(NameAnswer::Unavailable),
        }
    }

    fn answer_questions(&mut self, now: Instant) {
        for question in std::mem::take(&mut self.questions) {
            match self.name(&question.name, now) {
                Some(answer) => drop(question.answer.send(answer)),
                None if question.answer.is_closed() => {}
                None => self.questions.push(question),
            }
        }
    }

    /// A leaf or a bundle was replaced, or a name resolves to something else.
    pub(super) fn refresh(&mut self) {
        self.changed = true;
    }

    /// Something happened on the way to the control plane.
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Opened(requests) => {
                self.requests = Some(requests);
                self.subscriptions.reset();
                self.answers.clear();
                self.unacknowledged.clear();
                self.cache.reconnected();
                self.status.opened += 1;
                self.closed_at = None;
            }
            Event::Closed(reason) => {
                self.requests = None;
                self.status.open = false;
                self.closed_at.get_or_insert_with(Instant::now);
                self.stream_open.set(0);
                self.status.last_error = Some(reason);
                self.deadlines.clear();
            }
            // One that was given up; its end is on the way.
            Event::Response(_) if self.requests.is_none() => {}
            Event::Response(response) => {
                self.status.open = true;
                self.stream_open.set(1);
                self.status.responses += 1;
                self.response(*response);
            }
        }
    }

    fn response(&mut self, response: DeltaDiscoveryResponse) {
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let kind = kind_of(&response);
        let names_alone = matches!(kind, Ok(Kind::Dns));
        let outcome = kind.and_then(|kind| {
            let applied = self.cache.apply(kind, response, &self.wanted[kind]);
            if kind == Kind::Secret { applied.and(trust(&self.cache, &self.rotation)) } else { applied }
        });
        self.responses[usize::from(outcome.is_err())].increment();
        if let Err(problems) = &outcome {
            tracing::warn!("rejected a part of what the control plane sent: {}", problems.join("; "));
        }
        if names_alone {
            // No snapshot holds a name.
            self.save_soon(Instant::now());
        } else {
            for (_, held) in self.cache.held(Kind::Listener) {
                self.interest.limit_aliases(&held.aliases);
            }
            self.changed = true;
        }
        self.answers.push((type_url, nonce, outcome));
    }

    /// Acts on all that has happened since it was last called.
    pub(super) fn flush(&mut self, names: &mut Watched, now: Instant) {
        self.follow(names, now);
        if std::mem::take(&mut self.changed) {
            self.publish(names, now);
            // What only versions needed that have just been replaced is needed no more.
            self.follow(names, now);
        }
        self.answer_questions(now);
        let generation = self.builder.generation();
        self.unacknowledged.extend(self.answers.drain(..).map(|answer| (generation, answer)));
    }

    /// The generation that the oldest response waits for that is not acknowledged yet.
    pub(super) fn awaited_generation(&self) -> Option<u64> {
        self.unacknowledged.front().map(|(generation, _)| *generation)
    }

    /// Acknowledges what is in force with the snapshot of this generation: who hears of it and then sends a request finds
    /// it so.
    pub(super) fn acknowledge(&mut self, in_force: u64) {
        while let Some((_, answer)) =
            self.unacknowledged.pop_front_if(|(generation, _)| *generation <= in_force)
        {
            let (type_url, nonce, outcome) = answer;
            let answer = self.subscriptions.answer(&type_url, nonce, outcome);
            self.send(answer);
        }
    }

    /// Brings what is held, watched and subscribed to up to what is needed.
    fn follow(&mut self, names: &mut Watched, now: Instant) {
        self.wanted = self.interest.wanted(&self.cache, self.builder.clusters_in_force());
        self.cache.prune(&self.wanted);
        names.watch(&self.hosts());
        self.subscribe(now);
    }

    fn hosts(&self) -> BTreeSet<Arc<str>> {
        let hosts = self.cache.clusters().flat_map(|(_, cluster)| hosts_of(&cluster.discovery));
        hosts.map(|host| host.host.as_str().into()).collect()
    }

    fn subscribe(&mut self, now: Instant) {
        if self.requests.is_none() {
            return;
        }
        for request in self.subscriptions.requests(&self.wanted, |kind| self.cache.versions(kind)) {
            self.send(request);
        }
        let cache = &self.cache;
        let awaited = |kind, name: &str| cache.knowledge(kind, name) == Knowledge::Awaited;
        self.deadlines.retain(|(kind, name), _| self.wanted[*kind].contains(name) && awaited(*kind, name));
        for (kind, names) in self.wanted.iter() {
            for name in names.iter().filter(|name| awaited(kind, name)) {
                self.deadlines.entry((kind, Arc::clone(name))).or_insert(now + RESOURCE_TIMEOUT);
            }
        }
    }

    /// A server that takes no more requests while it sends on, or for too long, loses the stream: what it does not read
    /// must not pile up.
    fn send(&mut self, request: DeltaDiscoveryRequest) {
        // A stream that has just closed says so by its event.
        self.requests = self.requests.take().filter(|requests| !is_full(requests.try_send(request)));
    }

    fn publish(&mut self, names: &Watched, now: Instant) {
        let tls = self.rotation.lock().unwrap_or_else(PoisonError::into_inner).current();
        let certificate = tls.is_some();
        let listeners = self.interest.listeners().cloned().collect();
        let snapshot = self.builder.build(Sources { cache: &self.cache, names, listeners, tls });
        let heard = self.status.responses > 0
            || self.status.from_disk
            || self.wanted.iter().all(|(_, n)| n.is_empty());
        let settled = self.interest.inbound_settled(|name| {
            self.builder.is_in_force(name) || self.cache.knowledge(Kind::Listener, name) == Knowledge::Absent
        });
        self.snapshots.send_replace(snapshot);
        let readiness = Readiness { certificate, configuration: heard && settled };
        self.readiness.send_if_modified(|before| std::mem::replace(before, readiness) != readiness);
        self.save_soon(now);
    }

    fn save_soon(&mut self, now: Instant) {
        self.save_at = self.disk.as_ref().map(|_| self.save_at.unwrap_or(now + SAVE_DELAY));
    }

    /// When [`Engine::timers`] has something to do.
    pub(super) fn next_timer(&self) -> Instant {
        self.deadlines.values().copied().chain(self.save_at).fold(self.sweep_at, Instant::min)
    }

    /// Does what is due.
    pub(super) fn timers(&mut self, now: Instant) {
        let due: Vec<_> =
            self.deadlines.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for (kind, name) in due {
            tracing::warn!(
                "{kind} {name}: the control plane has not answered within {} s",
                RESOURCE_TIMEOUT.as_secs()
            );
            self.cache.give_up(kind, &name);
            self.deadlines.remove(&(kind, name));
            self.changed = true;
        }
        if self.sweep_at <= now {
            let Self { interest, cache, builder, .. } = self;
            let dropped = interest.sweep(now, |name| builder.last_use(cache.listener(name)?.0));
            self.changed |= dropped;
            self.telemetry.metrics.sweep();
            self.sweep_at = now + SWEEP;
        }
        if self.save_at.is_some_and(|at| at <= now) {
            self.save();
        }
    }

    /// Writes the configuration to disk, where that is wished for.
    pub(super) fn save(&mut self) {
        self.save_at = None;
        if let Some(disk) = &self.disk
            && let Err(error) = disk.save(&self.cache, self.interest.demanded(), self.interest.names())
        {
            tracing::warn!("the configuration is not on disk, so a restart needs the control plane: {error}");
        }
    }

    /// Tells someone who asks.
    pub(super) fn inspect(&self, inspection: Inspection) {
        // Whoever asked may have gone away.
        match inspection {
            Inspection::Status(answer) => {
                drop(answer.send(Status::new(self.status.clone(), &self.cache, &self.wanted)));
            }
            Inspection::Resources(answer) => {
                let node = self.subscriptions.node().clone();
                drop(answer.send(Box::new(client_config(node, &self.cache, &self.wanted))));
            }
        }
    }
}
