//! Injected faults: which of them a request gets, and how many requests have any.
//!
//! In: a fault of the configuration, and the head of a request. Out: a pause, an answer in place of the service's, a pace for the
//! answer's body. Who asks for none of them costs nothing here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tulle_mesh::model::{Fault, FaultAbort, FaultPart, PerMillion};
use tulle_mesh::route::RequestView;

use crate::error::RequestError;

/// What is injected into one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    /// A pause before it goes on.
    pub(crate) delay: Option<Duration>,
    /// An answer instead of the service's.
    pub(crate) abort: Option<FaultAbort>,
    /// How fast the answer's body goes, in KiB a second.
    pub(crate) rate: Option<u64>,
}

impl Injected {
    /// Whether there is any of it.
    pub(crate) fn is_any(&self) -> bool {
        self.delay.is_some() || self.abort.is_some() || self.rate.is_some()
    }
}

/// How many requests of a listener have faults, over all workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active(Arc<AtomicU32>);

/// One of the requests that have faults.
#[derive(Debug)]
pub(crate) struct Suffering(Arc<AtomicU32>);

impl Active {
    /// Counts one more, unless there are `most` already. Workers that ask at the same time may come to a little more, as
    /// Envoy's do.
    pub(crate) fn begin(&self, most: Option<u32>) -> Option<Suffering> {
        if most.is_some_and(|most| self.0.load(Relaxed) >= most) {
            return None;
        }
        self.0.fetch_add(1, Relaxed);
        Some(Suffering(Arc::clone(&self.0)))
    }
}

impl Drop for Suffering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Whether `fault` is for this request, which goes to `cluster`, at all.
pub(crate) fn concerns(fault: &Fault, request: &RequestView<'_>, cluster: Option<&str>) -> bool {
    (fault.cluster.is_empty() || cluster == Some(&fault.cluster))
        && (fault.nodes.is_empty() || {
            let node = request.header("x-envoy-downstream-service-node");
            node.is_some_and(|node| fault.nodes.iter().any(|known| *known == node))
        })
        && fault.applies_to.iter().all(|condition| condition.matches(request.values(&condition.name)))
}

/// Throws the dice of `fault`: one for each of its parts. Each draw is uniform over `u32`.
pub(crate) fn draw(fault: &Fault, request: &HeaderMap, mut draw: impl FnMut() -> u32) -> Injected {
    let mut hit = |share: PerMillion| share.hit(draw());
    let rate = part(fault.rate.as_ref(), request, RATE_SHARE, &mut hit, |request| {
        number::<u64>(request, RATE).filter(|rate| *rate > 0)
    });
    let delay = part(fault.delay.as_ref(), request, DELAY_SHARE, &mut hit, |request| {
        let delay = number::<u64>(request, DELAY).filter(|delay| *delay > 0);
        delay.map(|delay| Duration::from_millis(delay).min(LONGEST))
    });
    let abort = part(fault.abort.as_ref(), request, ABORT_SHARE, &mut hit, |request| {
        let status = number::<u16>(request, ABORT).filter(|status| (200..600).contains(status));
        if let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) {
            return Some(FaultAbort { status, grpc_status: None });
        }
        let grpc_status = number::<u32>(request, ABORT_GRPC)?;
        Some(FaultAbort { status: StatusCode::OK, grpc_status: Some(grpc_status) })
    });
    Injected { delay, abort, rate }
}

fn part<T: Copy>(
    part: Option<&FaultPart<T>>,
    request: &HeaderMap,
    share: &str,
    hit: &mut impl FnMut(PerMillion) -> bool,
    asked: impl FnOnce(&HeaderMap) -> Option<T>,
) -> Option<T> {
    match part? {
        FaultPart::Fixed { value, fraction } => hit(*fraction).then_some(*value),
        FaultPart::Asked(most) => {
            let value = asked(request)?;
            hit(most.of(number(request, share))).then_some(value)
        }
    }
}

/// In milliseconds.
const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_SHARE: &str = "x-envoy-fault-delay-request-percentage";
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_SHARE: &str = "x-envoy-fault-abort-request-percentage";
/// In KiB a second.
const RATE: &str = "x-envoy-fault-throughput-response";
const RATE_SHARE: &str = "x-envoy-fault-throughput-response-percentage";
/// The longest pause that a client gets: a year, so that no clock overflows.
const LONGEST: Duration = Duration::from_secs(31_536_000);

fn number<N: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<N> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

impl From<FaultAbort> for RequestError {
    fn from(abort: FaultAbort) -> Self {
        Self::Fault(abort.status, abort.grpc_status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use tulle_mesh::model::{AskedShare, Whole};

    const NOTHING: Injected = Injected { delay: None, abort: None, rate: None };

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn delay_and_answer_have_their_own_dice() {
        let half = PerMillion::percent(50);
        let abort = FaultAbort { status: StatusCode::SERVICE_UNAVAILABLE, grpc_status: Some(14) };
        let fault = Fault {
            delay: Some(FaultPart::fixed(Duration::from_secs(1), half)),
            abort: Some(FaultPart::fixed(abort, half)),
            ..Fault::default()
        };
        let injected = |first, second| {
            let mut dice = [first, second].into_iter();
            let injected = draw(&fault, &HeaderMap::new(), || dice.next().expect("two dice"));
            (injected.delay.is_some(), injected.abort.is_some())
        };
        assert_eq!(injected(0, u32::MAX), (true, false));
        assert_eq!(injected(u32::MAX, 0), (false, true));
        assert_eq!(injected(0, 0), (true, true));
        assert_eq!(draw(&Fault::default(), &HeaderMap::new(), || 0), NOTHING);
    }

    #[test]
    fn a_request_gets_what_it_asks_for_as_often_as_it_may() {
        let most = AskedShare { most: 60, of: Whole::Hundred };
        let fault = Fault {
            delay: Some(FaultPart::Asked(most)),
            abort: Some(FaultPart::Asked(most)),
            rate: Some(FaultPart::Asked(most)),
            ..Fault::default()
        };
        let at = |percent: u32| (u64::from(u32::MAX) * u64::from(percent) / 100) as u32;
        let drawn = |fields: &[(&'static str, &'static str)], percent: u32| {
            draw(&fault, &headers(fields), || at(percent))
        };
        let delay = Some(Duration::from_millis(20));
        assert_eq!(drawn(&[(DELAY, " 20 ")], 59), Injected { delay, ..NOTHING });
        assert_eq!(drawn(&[(DELAY, "20")], 61), NOTHING);
        assert_eq!(drawn(&[(DELAY, "20"), (DELAY_SHARE, "30")], 29).delay, delay);
        assert_eq!(drawn(&[(DELAY, "20"), (DELAY_SHARE, "30")], 31), NOTHING);
        assert_eq!(drawn(&[(DELAY, "20"), (DELAY_SHARE, "100")], 61), NOTHING, "no more than is allowed");
        assert_eq!(drawn(&[(DELAY, "20"), (DELAY_SHARE, "x")], 59).delay, delay);
        for nonsense in ["", "x", "-1", "0", "1.5"] {
            assert_eq!(drawn(&[(DELAY, nonsense), (RATE, nonsense)], 0), NOTHING, "{nonsense:?}");
        }
        assert_eq!(drawn(&[(RATE, "7")], 0).rate, Some(7));
        let status = |fields: &[(&'static str, &'static str)]| {
            drawn(fields, 0).abort.map(|abort| (abort.status.as_u16(), abort.grpc_status))
        };
        assert_eq!(status(&[(ABORT, "503"), (ABORT_GRPC, "5")]), Some((503, None)));
        assert_eq!(status(&[(ABORT, "600"), (ABORT_GRPC, "5")]), Some((200, Some(5))));
        assert_eq!(status(&[(ABORT, "199")]), None);
    }

    #[test]
    fn a_fault_concerns_clusters_and_nodes_that_it_names() {
        let fault = Fault { cluster: "a".into(), nodes: vec!["n".into(), "m".into()], ..Fault::default() };
        let concerns = |node: &'static str, cluster| {
            let headers = headers(&[("x-envoy-downstream-service-node", node)]);
            concerns(&fault, &RequestView::new(&Method::GET, "h", "/", &headers), cluster)
        };
        assert!(concerns("m", Some("a")) && !concerns("m", Some("b")) && !concerns("m", None));
        assert!(!concerns("o", Some("a")));
    }

    #[test]
    fn no_more_suffer_than_may() {
        let active = Active::default();
        let first = active.begin(Some(1)).expect("one may");
        assert!(active.begin(Some(1)).is_none() && active.begin(Some(0)).is_none());
        let second = active.begin(None).expect("any number may");
        drop(first);
        assert!(active.begin(Some(1)).is_none());
        drop(second);
        assert!(active.begin(Some(1)).is_some());
    }
}
