//! Who is connected and how far each of them is: the record behind `GET /api/v1/proxies`.
//!
//! Streams write it, the HTTP API reads it; nothing that is pushed depends on it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::server::{Ack, Batch};
use super::{Kind, PUSH_ORDER, place};
use crate::api::types::{Nack, ProxyStatus, TypeStatus};
use crate::caller::{Caller, Proof};
use crate::status::programmed::Standing;

/// How many responses are remembered, per type, until they are acknowledged. Only what a rejection is about is lost when
/// a client is further behind.
const MAX_UNACKNOWLEDGED: usize = 64;

/// The longest reason of a rejection that is kept, in bytes.
const MAX_REASON: usize = 4096;

/// All proxies that are connected.
#[derive(Debug, Default)]
pub struct Proxies {
    next: AtomicU64,
    connected: Mutex<BTreeMap<u64, Arc<Proxy>>>,
    /// Counts what changes a [`Standing`].
    turns: Arc<AtomicU64>,
}

impl Proxies {
    /// Adds a proxy until the guard is dropped.
    pub(super) fn connect(self: &Arc<Self>, about: About) -> Connected {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let proxy = Arc::new(Proxy { about, seen: AtomicU64::new(0), types: Mutex::default() });
        locked(&self.connected).insert(id, Arc::clone(&proxy));
        self.turn();
        Connected { proxies: Arc::clone(self), id, proxy }
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        locked(&self.connected).len()
    }

    /// Whether none is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How far each is with what it was sent.
    pub fn standings(&self) -> Vec<Standing> {
        let proxies: Vec<_> = locked(&self.connected).values().cloned().collect();
        proxies.iter().map(|proxy| proxy.standing()).collect()
    }

    /// How many have not been sent all changes until `sequence`.
    pub fn behind(&self, sequence: u64) -> usize {
        let connected = locked(&self.connected);
        connected.values().filter(|proxy| proxy.seen.load(Ordering::Acquire) < sequence).count()
    }

    /// Another number after each change of [`Self::standings`].
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    fn turn(&self) {
        self.turns.fetch_add(1, Ordering::AcqRel);
    }

    /// What is known of each, in the order in which they connected.
    pub fn status(&self) -> Vec<ProxyStatus> {
        let proxies: Vec<_> = locked(&self.connected).values().cloned().collect();
        proxies.iter().map(|proxy| proxy.status()).collect()
    }
}

/// Keeps a proxy in the record.
pub(super) struct Connected {
    proxies: Arc<Proxies>,
    id: u64,
    proxy: Arc<Proxy>,
}

impl Connected {
    /// A response was sent.
    pub(super) fn sent(&self, nonce: &str, batch: Batch) {
        let mut types = locked(&self.proxy.types);
        let sync = &mut types[place(batch.kind)];
        for name in &batch.removed {
            sync.nacked.remove(name);
        }
        sync.sent = Some(Sent { nonce: nonce.into(), version: batch.version.clone(), at: SystemTime::now() });
        if sync.unacknowledged.len() == MAX_UNACKNOWLEDGED {
            sync.unacknowledged.pop_front();
        }
        sync.unacknowledged.push_back((nonce.into(), batch));
        drop(types);
        self.proxies.turn();
    }

    /// All of what changed until `sequence` was sent.
    pub(super) fn sent_all(&self, sequence: u64) {
        if self.proxy.seen.swap(sequence, Ordering::AcqRel) != sequence {
            self.proxies.turn();
        }
    }

    /// A response was acknowledged or rejected.
    pub(super) fn answered(&self, ack: Ack) {
        self.proxies.turn();
        let mut types = locked(&self.proxy.types);
        let sync = &mut types[place(ack.kind)];
        let Some(at) = sync.unacknowledged.iter().position(|(nonce, _)| *nonce == ack.nonce) else {
            return;
        };
        // Answers may come out of order, so only this response is settled.
        let Some((nonce, batch)) = sync.unacknowledged.remove(at) else { return };
        sync.answered = Some(nonce);
        let Some(mut reason) = ack.rejected else {
            for name in &batch.names {
                sync.nacked.remove(name);
            }
            sync.acked = Some(batch.version);
            return;
        };
        let end = (0..=MAX_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or_default());
        // A client applies the good part of a response. Its message usually says which part was not.
        let named: Vec<_> = batch.names.iter().filter(|name| reason.contains(&***name)).cloned().collect();
        for name in if named.is_empty() { batch.names } else { named } {
            let nack = (batch.version.clone(), reason.clone(), SystemTime::now());
            sync.nacked.insert(name, nack);
        }
    }

    /// What a proxy subscribes to changed.
    pub(super) fn subscribed(&self, kind: Kind, (names, wildcard): (usize, bool)) {
        let mut types = locked(&self.proxy.types);
        types[place(kind)].subscribed = names;
        types[place(kind)].wildcard = wildcard;
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        locked(&self.proxies.connected).remove(&self.id);
        self.proxies.turn();
    }
}

/// What does not change while a proxy is connected.
#[derive(Debug)]
pub(super) struct About {
    /// What it calls itself. Proves nothing.
    pub(super) node: String,
    /// The software that it says it is.
    pub(super) user_agent: String,
    /// And its version.
    pub(super) version: String,
    pub(super) caller: Caller,
    pub(super) address: Option<SocketAddr>,
    pub(super) protocol: &'static str,
    pub(super) since: SystemTime,
}

#[derive(Debug)]
struct Proxy {
    about: About,
    /// The last change of which all was sent.
    seen: AtomicU64,
    types: Mutex<[TypeSync; 6]>,
}

#[derive(Debug, Default)]
struct TypeSync {
    subscribed: usize,
    wildcard: bool,
    sent: Option<Sent>,
    /// The nonce of the last response that was acknowledged or rejected.
    answered: Option<String>,
    /// The version of the last response that was acknowledged.
    acked: Option<String>,
    /// By resource: the version of the response, the reason, and when. It stays until a later version is acknowledged.
    nacked: BTreeMap<Arc<str>, (String, String, SystemTime)>,
    unacknowledged: VecDeque<(String, Batch)>,
}

#[derive(Debug)]
struct Sent {
    nonce: String,
    version: String,
    at: SystemTime,
}

impl Proxy {
    fn standing(&self) -> Standing {
        let types = locked(&self.types);
        let mut standing = Standing {
            node: self.about.node.clone(),
            namespace: self.about.caller.namespace().into(),
            seen: self.seen.load(Ordering::Acquire),
            ..Standing::default()
        };
        for kind in PUSH_ORDER {
            let sync = &types[place(kind)];
            let sent =
                sync.unacknowledged.iter().flat_map(|(_, batch)| batch.names.iter().chain(&batch.removed));
            standing.unanswered.extend(sent.map(|name| (kind, Arc::clone(name))));
            let rejected =
                sync.nacked.iter().map(|(name, (_, reason, _))| (kind, Arc::clone(name), reason.clone()));
            standing.rejected.extend(rejected);
        }
        standing
    }

    fn status(&self) -> ProxyStatus {
        let About { node, user_agent, version, caller, address, protocol, since } = &self.about;
        let (certificate, token_expires) = match &caller.proof {
            Proof::Certificate(certificate) => (Some(certificate), None),
            Proof::Token { expires } => (None, Some(*expires)),
        };
        let types = locked(&self.types);
        let types = PUSH_ORDER.into_iter().filter_map(|kind| {
            let sync = &types[place(kind)];
            let used = sync.subscribed > 0 || sync.wildcard || sync.sent.is_some();
            used.then(|| (super::abbreviation(kind).to_owned(), sync.status()))
        });
        let types: BTreeMap<_, _> = types.collect();
        ProxyStatus {
            node: node.clone(),
            identity: caller.identity.to_string(),
            address: address.map(|address| address.to_string()),
            user_agent: user_agent.clone(),
            version: version.clone(),
            protocol: (*protocol).into(),
            connected_since: (*since).into(),
            certificate_since: certificate.map(|certificate| certificate.not_before.into()),
            certificate_expires: certificate.map(|certificate| certificate.not_after.into()),
            root: certificate.and_then(|certificate| certificate.root.clone()),
            token_expires: token_expires.map(Into::into),
            synced: types.values().all(|status| status.synced),
            types,
        }
    }
}

impl TypeSync {
    fn status(&self) -> TypeStatus {
        let nonce = self.sent.as_ref().map(|sent| sent.nonce.clone());
        TypeStatus {
            subscribed: self.subscribed,
            wildcard: self.wildcard,
            synced: self.nacked.is_empty() && (nonce.is_none() || nonce == self.answered),
            sent: self.sent.as_ref().map(|sent| sent.version.clone()),
            sent_at: self.sent.as_ref().map(|sent| sent.at.into()),
            nonce,
            acked: self.acked.clone(),
            nacked: self
                .nacked
                .iter()
                .map(|(name, (version, reason, at))| Nack {
                    name: name.to_string(),
                    version: version.clone(),
                    reason: reason.clone(),
                    at: (*at).into(),
                })
                .collect(),
        }
    }
}

/// No lock here is held while anything can panic, so a poisoned one is sound.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
