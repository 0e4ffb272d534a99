//! The series of an edge: histograms by method, status, error and peer; of connections, by error and peer.
//!
//! In: the records of requests and connections that have ended, from any worker. Out: counts for a scrape. A slot is
//! found by comparing a few words along a short list that only grows; nothing here hashes, and nothing locks once a
//! slot exists.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use tulle_mesh::identity::SpiffeId;

use super::metrics::{Counter, MAX_HISTOGRAMS};
use super::record::{ConnectionRecord, RequestRecord};

/// The upper bounds of the buckets, in seconds: OpenTelemetry's advice for HTTP, with finer steps below 5 ms where a
/// mesh spends its time.
pub(super) const BOUNDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BOUNDS_NANOS: [u64; 17] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
];

/// The most slots of one edge.
const MAX_SLOTS: usize = 128;

/// The requests of one edge.
pub(crate) struct HttpSeries {
    pub(super) durations: Slots,
    pub(super) request_bytes: Counter,
    pub(super) response_bytes: Counter,
}

impl HttpSeries {
    pub(super) fn new(histograms: Arc<AtomicUsize>) -> Self {
        Self {
            durations: Slots::new(histograms),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
        }
    }

    /// Counts a request that has ended.
    pub(super) fn record(&self, record: &RequestRecord<'_>) {
        self.request_bytes.add(record.request_bytes);
        self.response_bytes.add(record.response_bytes);
        let key = Key {
            method: known_method(&record.request.method),
            status: record.status.map_or(0, |status| status.as_u16()),
            grpc: record.grpc_status,
            error: record.error.map_or("", |error| error.token),
            peer: record.peer,
        };
        self.durations.histogram(&key).observe(record.duration);
    }
}

/// The connections of one edge.
pub(crate) struct TcpSeries {
    pub(super) durations: Slots,
    pub(super) connections: Counter,
    pub(super) failures: Counter,
    pub(super) received_bytes: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) spliced_bytes: Counter,
}

impl TcpSeries {
    pub(super) fn new(histograms: Arc<AtomicUsize>) -> Self {
        Self {
            durations: Slots::new(histograms),
            connections: Counter::default(),
            failures: Counter::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            spliced_bytes: Counter::default(),
        }
    }

    /// Counts a connection that has ended.
    pub(super) fn record(&self, record: &ConnectionRecord<'_>) {
        self.connections.increment();
        if record.error.is_some() {
            self.failures.increment();
        }
        self.received_bytes.add(record.received);
        self.sent_bytes.add(record.sent);
        self.spliced_bytes.add(record.spliced);
        let error = record.error.as_ref().map_or("", |error| error.token);
        let key = Key { method: "", status: 0, grpc: None, error, peer: record.peer };
        self.durations.histogram(&key).observe(record.duration);
    }
}

/// The histograms of one edge, each found by its key.
pub(super) struct Slots {
    first: Segment,
    overflow: Histogram,
    /// How many histograms the whole sidecar has.
    histograms: Arc<AtomicUsize>,
}

impl Slots {
    fn new(histograms: Arc<AtomicUsize>) -> Self {
        Self { first: Segment::default(), overflow: Histogram::default(), histograms }
    }

    /// Every slot with its key, and last the overflow (with no key) where anything is in it.
    pub(super) fn each(&self, mut visit: impl FnMut(Option<Key<'_>>, &Histogram)) {
        let mut segment = Some(&self.first);
        while let Some(Segment { slots, next }) = segment {
            for slot in slots.iter().filter_map(OnceLock::get) {
                visit(Some(slot.key.borrow()), &slot.histogram);
            }
            segment = next.get().map(|next| &**next);
        }
        if self.overflow.count() > 0 {
            visit(None, &self.overflow);
        }
    }

    fn histogram(&self, key: &Key<'_>) -> &Histogram {
        let mut segment = &self.first;
        for _ in 0..MAX_SLOTS / SEGMENT {
            for cell in &segment.slots {
                let slot = match cell.get() {
                    Some(slot) => slot,
                    None if self.histograms.load(Ordering::Relaxed) >= MAX_HISTOGRAMS => {
                        return &self.overflow;
                    }
                    // Two workers may come here at once: the loser of the race finds the winner's slot.
                    None => cell.get_or_init(|| {
                        self.histograms.fetch_add(1, Ordering::Relaxed);
                        Box::new(Slot { key: key.owned(), histogram: Histogram::default() })
                    }),
                };
                if slot.key.borrow() == *key {
                    return &slot.histogram;
                }
            }
            segment = segment.next.get_or_init(Box::default);
        }
        &self.overflow
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut count = 0;
        self.each(|key, _| count += usize::from(key.is_some()));
        self.histograms.fetch_sub(count, Ordering::Relaxed);
    }
}

/// What tells the slots of an edge apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    /// Empty where it was no request.
    pub(super) method: &'static str,
    /// 0 where the client went away before there was one.
    pub(super) status: u16,
    pub(super) grpc: Option<u32>,
    /// The RFC 9209 token where the mesh failed or refused; empty else.
    pub(super) error: &'static str,
    pub(super) peer: Option<&'a SpiffeId>,
}

impl Key<'_> {
    fn owned(self) -> OwnedKey {
        OwnedKey {
            method: self.method,
            status: self.status,
            grpc: self.grpc,
            error: self.error,
            peer: self.peer.cloned(),
        }
    }
}

struct OwnedKey {
    method: &'static str,
    status: u16,
    grpc: Option<u32>,
    error: &'static str,
    peer: Option<SpiffeId>,
}

impl OwnedKey {
    fn borrow(&self) -> Key<'_> {
        Key {
            method: self.method,
            status: self.status,
            grpc: self.grpc,
            error: self.error,
            peer: self.peer.as_ref(),
        }
    }
}

const SEGMENT: usize = 8;

#[derive(Default)]
struct Segment {
    slots: [OnceLock<Box<Slot>>; SEGMENT],
    next: OnceLock<Box<Segment>>,
}

struct Slot {
    key: OwnedKey,
    histogram: Histogram,
}

/// Counts of durations, by bucket.
#[derive(Default)]
pub(super) struct Histogram {
    /// The last bucket has no upper bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|&bound| bound < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// In seconds.
    pub(super) fn sum(&self) -> f64 {
        Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Upper bounds in seconds, each with its own (not cumulative) count.
    pub(super) fn buckets(&self) -> [(f64, u64); BOUNDS.len() + 1] {
        std::array::from_fn(|i| {
            (BOUNDS.get(i).copied().unwrap_or(f64::INFINITY), self.buckets[i].load(Ordering::Relaxed))
        })
    }
}

/// The method where it is a known one; callers must not be able to make series by inventing methods (OpenTelemetry's
/// semantic conventions for HTTP).
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}
