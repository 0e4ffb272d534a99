//! How long a request may take, over all hops.
//!
//! In: the route's timeouts and what the caller says it has left. Out: when to give up, by what name, and what to tell
//! the next hop. A deadline only ever shrinks on its way.

use std::future::{pending, poll_fn};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{sleep, sleep_until};
use tulle_mesh::model::{GrpcTimeout, HttpConnection, Timeouts};

use crate::http::server::ServerOptions;
use crate::retry::replay::Replay;

/// gRPC's timeout: what the caller has left.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The same for other requests, in milliseconds (Envoy's name).
const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// A timeout's name and value, for the answer that says that it is over.
pub(crate) type Named = (&'static str, Duration);

/// A connection manager that gives a stream this long or longer to move bounds clients that stall, and no waits for what an
/// endpoint has to say: a timer per request would be for nothing.
const UNTIMED: Duration = HttpConnection::MESH_STREAM_IDLE;

/// A route's timeouts, where the connection manager says how long a stream may last, and be without movement, unless the route does.
pub(super) fn timeouts(route: &Timeouts, manager: &HttpConnection) -> Timeouts {
    let idle = manager.stream_idle_timeout.unwrap_or(ServerOptions::STREAM_IDLE_TIMEOUT);
    Timeouts {
        max_stream: route.max_stream.or(manager.max_stream_duration),
        idle: route.idle.or((idle < UNTIMED).then_some(idle)),
        ..*route
    }
}

/// The limits of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// What the caller has given, and until when.
    caller: Option<(Instant, Named)>,
    /// How long the whole stream may last, and until when.
    stream: Option<(Instant, Named)>,
    /// What the route gives from the end of the request's body on.
    route: Option<Duration>,
    /// How long nothing may move before the answer begins.
    idle: Option<Duration>,
}

impl Deadline {
    /// For a request that arrived at `now`; `grpc`: a call. Zero on the route means no limit.
    pub(crate) fn new(headers: &HeaderMap, route: &Timeouts, grpc: bool, now: Instant) -> Self {
        let told = headers.get(GRPC_TIMEOUT).and_then(|value| parse_grpc(value.as_bytes()));
        let (mut request, mut stream, mut held) = (route.request, route.max_stream, told);
        match &route.grpc {
            Some(bounds) if bounds.limits_request && grpc => {
                request = Some(of_request(bounds, told.unwrap_or_default()));
            }
            Some(bounds) if !bounds.limits_request && told.is_some() => {
                held = told.map(|told| of_stream(bounds, told));
                stream = None;
            }
            _ => {}
        }
        let named = held.map(|value| ("grpc-timeout", value)).or_else(|| {
            let millis = headers.get(EXPECTED)?.to_str().ok()?.parse().ok()?;
            Some(("x-envoy-expected-rq-timeout-ms", Duration::from_millis(millis)))
        });
        let until = |named: Named| Some((now.checked_add(named.1)?, named));
        let stream = stream.filter(|limit| !limit.is_zero()).map(|limit| ("maxStream", limit));
        Self {
            // A time that does not fit the clock is no limit.
            caller: named.and_then(until),
            stream: stream.and_then(until),
            route: request.filter(|timeout| !timeout.is_zero()),
            idle: route.idle.filter(|timeout| !timeout.is_zero()),
        }
    }

    /// How long the answer may take from the end of the request's body on.
    pub(super) fn request(&self) -> Option<Duration> {
        self.route
    }

    /// What is left at `now`, of a request whose body ended at `ended`; `None`: no limit.
    pub(crate) fn left(&self, ended: Option<Instant>, now: Instant) -> Option<Duration> {
        let caller = self.caller.map(|(end, _)| end.saturating_duration_since(now));
        let route = self.route.map(|timeout| {
            let used = ended.map_or(Duration::ZERO, |ended| now.saturating_duration_since(ended));
            timeout.saturating_sub(used)
        });
        caller.into_iter().chain(route).min()
    }

    /// Tells the next hop what is left. Rounded up: to be told of no time at all would be no limit to some.
    pub(crate) fn write(&self, headers: &mut HeaderMap, left: Option<Duration>, grpc: bool) {
        let Some(left) = left else { return };
        if grpc {
            headers.insert(GRPC_TIMEOUT, format_grpc(left));
            headers.remove(EXPECTED);
        } else {
            let millis = u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            headers.insert(EXPECTED, HeaderValue::from(millis.max(1)));
        }
    }

    /// What ends the request, or its answer, so long after the arrival.
    pub(super) fn until(&self) -> Option<(Instant, Named)> {
        self.caller.into_iter().chain(self.stream).min_by_key(|(end, _)| *end)
    }

    /// Waits until the request, whose body is `body`, has taken too long: what is over. `per_try` limits the attempt
    /// that begins now, and also counts from the end of the body.
    pub(crate) async fn over(&self, body: &Replay, per_try: Option<Named>) -> Over {
        let from_arrival = async {
            match self.until() {
                Some((end, named)) => {
                    sleep_until(end.into()).await;
                    Over::Request(named)
                }
                None => pending().await,
            }
        };
        let begun = Instant::now();
        let from_route = async {
            let ended = poll_fn(|cx| body.poll_ended(cx)).await;
            let route = self.route.map(|value| (ended + value, Over::Request(("request", value))));
            let begun = ended.max(begun);
            let per_try = per_try.map(|named| (begun + named.1, Over::Try(named)));
            let idle = self.idle.map(|value| (begun + value, Over::Request(("idle", value))));
            match route.into_iter().chain(per_try).chain(idle).min_by_key(|(end, _)| *end) {
                Some((end, over)) => {
                    sleep_until(end.into()).await;
                    over
                }
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            over = from_arrival => over,
            over = from_route => over,
            over = self.stalled(body) => over,
        }
    }

    /// Waits until nothing of the request's body has come for as long as nothing may move, or up to twice as long.
    async fn stalled(&self, body: &Replay) -> Over {
        let Some(idle) = self.idle else { return pending().await };
        loop {
            let before = body.bytes();
            sleep(idle).await;
            if body.ended().is_some() {
                return pending().await;
            }
            if body.bytes() == before {
                return Over::Body;
            }
        }
    }

    /// Whether there is any limit.
    pub(crate) fn is_some(&self) -> bool {
        self.caller.is_some() || self.stream.is_some() || self.route.is_some() || self.idle.is_some()
    }
}

/// What is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The whole request.
    Request(Named),
    /// One attempt.
    Try(Named),
    /// The wait for the client's body.
    Body,
}

/// What is left to a call as a limit on the whole request. Zero is none: what would come to that is not taken off.
fn of_request(bounds: &GrpcTimeout, told: Duration) -> Duration {
    let left = if bounds.offset < told { told - bounds.offset } else { told };
    match bounds.max {
        max if !max.is_zero() && (left.is_zero() || left > max) => max,
        _ => left,
    }
}

/// What is left to a call that has told its time; that may be nothing.
fn of_stream(bounds: &GrpcTimeout, told: Duration) -> Duration {
    let most = if bounds.max.is_zero() { told } else { told.min(bounds.max) };
    most.saturating_sub(bounds.offset)
}

/// At most eight digits and a unit (gRPC over HTTP/2, `Timeout`).
fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn format_grpc(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let (micros, millis) = (left.as_micros().max(1), left.as_millis());
    let text = match () {
        () if micros <= MOST => format!("{micros}u"),
        () if millis <= MOST => format!("{millis}m"),
        () => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("1u"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Body;
    use proptest::prelude::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("valid"))])
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn request(limit: Duration) -> Timeouts {
        Timeouts { request: Some(limit), ..Timeouts::default() }
    }

    #[test]
    fn the_shorter_of_callers_and_routes_limit_holds() {
        let now = Instant::now();
        let caller = headers(GRPC_TIMEOUT, "300m");
        let deadline = Deadline::new(&caller, &request(SECOND), true, now);
        assert_eq!(deadline.left(Some(now), now), Some(Duration::from_millis(300)));
        assert_eq!(deadline.left(None, now + SECOND), Some(Duration::ZERO));
        let route = Deadline::new(&HeaderMap::new(), &request(SECOND), false, now);
        assert_eq!(route.left(None, now + 5 * SECOND), Some(SECOND), "the body is still on its way");
        assert_eq!(route.left(Some(now), now + SECOND / 4), Some(SECOND * 3 / 4));
        assert!(!Deadline::new(&HeaderMap::new(), &request(Duration::ZERO), false, now).is_some());
        assert_eq!(
            Deadline::new(&HeaderMap::new(), &Timeouts::default(), false, now).left(Some(now), now),
            None
        );
    }

    #[test]
    fn what_is_told_shrinks_from_hop_to_hop() {
        let now = Instant::now();
        let first = Deadline::new(&headers(GRPC_TIMEOUT, "1S"), &Timeouts::default(), true, now);
        let mut told = headers(GRPC_TIMEOUT, "1S");
        first.write(&mut told, first.left(Some(now), now + SECOND / 4), true);
        let second = Deadline::new(&told, &request(10 * SECOND), true, now);
        assert_eq!(second.left(Some(now), now), Some(SECOND * 3 / 4));
        let mut told = HeaderMap::new();
        second.write(&mut told, Some(Duration::from_micros(1500)), false);
        assert_eq!(told[EXPECTED], "2");
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_that_fires_names_itself() {
        let now = Instant::now();
        let body = Replay::new(Body::Empty, now);
        let route = Deadline::new(&HeaderMap::new(), &request(SECOND), false, now);
        assert_eq!(route.over(&body, None).await, Over::Request(("request", SECOND)));
        assert_eq!(route.over(&body, Some(("perTry", 2 * SECOND))).await, Over::Request(("request", SECOND)));
        assert_eq!(route.over(&body, Some(("perTry", SECOND / 2))).await, Over::Try(("perTry", SECOND / 2)));
        let none = Deadline::new(&HeaderMap::new(), &Timeouts::default(), false, now);
        assert_eq!(none.over(&body, Some(("perTry", SECOND))).await, Over::Try(("perTry", SECOND)));
        let idle = Timeouts { idle: Some(SECOND / 4), ..Timeouts::default() };
        let idle = Deadline::new(&HeaderMap::new(), &idle, false, now);
        assert_eq!(idle.over(&body, Some(("perTry", SECOND))).await, Over::Request(("idle", SECOND / 4)));
        assert_eq!(idle.left(Some(now), now), None, "it is no deadline to tell the next hop");
        let stream = Timeouts { max_stream: Some(SECOND / 2), ..request(SECOND) };
        let stream = Deadline::new(&HeaderMap::new(), &stream, false, Instant::now());
        assert_eq!(stream.over(&body, None).await, Over::Request(("maxStream", SECOND / 2)));
        let caller = Deadline::new(&headers(GRPC_TIMEOUT, "5m"), &Timeouts::default(), true, now);
        let value = Duration::from_millis(5);
        assert_eq!(
            caller.over(&body, Some(("perTry", SECOND))).await,
            Over::Request(("grpc-timeout", value))
        );
    }

    #[test]
    fn the_time_that_a_call_brings_is_bounded_and_shortened() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let limits = |bounds: (u64, u64, bool), told: Option<&str>, grpc: bool| {
            let headers = told.map_or_else(HeaderMap::new, |told| headers(GRPC_TIMEOUT, told));
            let (max, offset, limits_request) = (ms(bounds.0), ms(bounds.1), bounds.2);
            let route = Timeouts {
                max_stream: Some(ms(700)),
                grpc: Some(GrpcTimeout { max, offset, limits_request }),
                ..request(ms(900))
            };
            let deadline = Deadline::new(&headers, &route, grpc, now);
            let until = deadline.until().map(|(end, (name, _))| (name, (end - now).as_millis()));
            (until, deadline.request().map(|limit| limit.as_millis()))
        };
        let stream = Some(("maxStream", 700));
        let call = |millis| Some(("grpc-timeout", millis));
        assert_eq!(limits((300, 0, false), None, true), (stream, Some(900)));
        assert_eq!(limits((300, 0, false), Some("200m"), true), (call(200), Some(900)));
        assert_eq!(limits((300, 50, false), Some("2S"), true), (call(250), Some(900)));
        assert_eq!(
            limits((0, 50, false), Some("2S"), true),
            (call(1950), Some(900)),
            "in place of the stream's"
        );
        assert_eq!(limits((0, 50, false), Some("50m"), true), (call(0), Some(900)), "at once");
        assert_eq!(
            limits((300, 50, true), Some("2S"), true),
            (stream, Some(300)),
            "first shortened, then bounded"
        );
        assert_eq!(limits((0, 50, true), Some("200m"), true), (call(200), Some(150)));
        assert_eq!(limits((0, 50, true), Some("40m"), true), (call(40), Some(40)), "nothing would be left");
        assert_eq!(limits((0, 0, true), None, true), (stream, None));
        assert_eq!(limits((300, 0, true), None, true), (stream, Some(300)));
        assert_eq!(limits((300, 0, true), None, false), (stream, Some(900)), "it is no call");
    }

    proptest! {
        #[test]
        fn a_grpc_timeout_is_read_as_it_was_written_to_within_its_unit(micros in 1u64..10_000_000_000_000) {
            let left = Duration::from_micros(micros);
            let read = parse_grpc(format_grpc(left).as_bytes()).expect("valid");
            prop_assert!(read <= left && left - read < SECOND, "{left:?} {read:?}");
        }

        #[test]
        fn no_text_breaks_it(value: Vec<u8>) {
            let _ = parse_grpc(&value);
        }
    }
}
