//! Trace context: W3C `traceparent` and `tracestate` in and out; B3, single and multiple, is accepted and kept up to
//! date where it came in, so that an application which passes on only B3 stays in the trace.
//!
//! Sources: W3C Trace Context level 2; openzipkin/b3-propagation.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// A span's place in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// Never 0.
    pub(crate) trace_id: u128,
    /// The span's own ID; never 0.
    pub(crate) span_id: u64,
    /// The span above it; 0 for a root.
    pub(crate) parent_id: u64,
    /// Whether the trace is recorded.
    pub(crate) sampled: bool,
    /// The vendors' parts, passed on as they came.
    pub(crate) state: Option<HeaderValue>,
}

impl TraceContext {
    /// The context of a new span: under the one that a request's headers carry, or the root of a new trace that is
    /// recorded as the headers say or else as `sample` says. `random` gives the new IDs.
    pub(crate) fn start(headers: &HeaderMap, random: [u64; 3], sample: bool) -> Self {
        let (trace_id, span_id) =
            ((u128::from(random[0]) << 64 | u128::from(random[1])).max(1), random[2].max(1));
        match extract(headers) {
            Extracted::Parent { trace_id, parent_id, sampled, state } => {
                Self { trace_id, span_id, parent_id, sampled: sampled.unwrap_or(sample), state }
            }
            Extracted::Decision(sampled) => Self { trace_id, span_id, parent_id: 0, sampled, state: None },
            Extracted::Nothing => Self { trace_id, span_id, parent_id: 0, sampled: sample, state: None },
        }
    }

    /// A span below this one.
    pub(crate) fn child(&self, span_id: u64) -> Self {
        Self { span_id: span_id.max(1), parent_id: self.span_id, ..self.clone() }
    }

    /// Writes the headers that make the receiver's span a child of this one.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.traceparent());
        match &self.state {
            Some(state) => headers.insert(TRACESTATE, state.clone()),
            None => headers.remove(TRACESTATE),
        };
        if headers.contains_key(B3) {
            headers.insert(B3, self.b3());
        }
        if headers.contains_key(B3_TRACE) {
            headers.insert(B3_TRACE, hex_value(format_args!("{:032x}", self.trace_id)));
            headers.insert(B3_SPAN, hex_value(format_args!("{:016x}", self.span_id)));
            headers.remove(B3_PARENT);
            if !headers.contains_key(B3_FLAGS) {
                headers.insert(B3_SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
            }
        }
    }

    fn traceparent(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], self.trace_id);
        write_hex(&mut text[36..52], u128::from(self.span_id));
        text[54] = if self.sampled { b'1' } else { b'0' };
        HeaderValue::from_bytes(&text).expect("hex digits and dashes are a valid header value")
    }

    fn b3(&self) -> HeaderValue {
        let sampled = u8::from(self.sampled);
        hex_value(format_args!("{:032x}-{:016x}-{sampled}", self.trace_id, self.span_id))
    }
}

/// What a request's headers say of its trace.
#[derive(Debug, PartialEq, Eq)]
enum Extracted {
    Parent { trace_id: u128, parent_id: u64, sampled: Option<bool>, state: Option<HeaderValue> },
    Decision(bool),
    Nothing,
}

/// W3C wins over B3: a mesh hop writes it, while B3 may be an older hop's.
fn extract(headers: &HeaderMap) -> Extracted {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    if let (Some(value), None) = (parents.next(), parents.next())
        && let Some((trace_id, parent_id, sampled)) = parse_traceparent(value.as_bytes())
    {
        return Extracted::Parent { trace_id, parent_id, sampled: Some(sampled), state: state(headers) };
    }
    if let Some(value) = headers.get(B3).and_then(|value| value.to_str().ok()) {
        return parse_b3(value);
    }
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let sampled = match (text(B3_FLAGS), text(B3_SAMPLED)) {
        (Some("1"), _) => Some(true),
        (_, sampled) => sampled.and_then(b3_sampled),
    };
    let ids = text(B3_TRACE).and_then(b3_trace_id).zip(text(B3_SPAN).and_then(hex_u64));
    match (ids, sampled) {
        (Some((trace_id, parent_id)), sampled) => {
            Extracted::Parent { trace_id, parent_id, sampled, state: None }
        }
        (None, Some(sampled)) => Extracted::Decision(sampled),
        (None, None) => Extracted::Nothing,
    }
}

/// Several `tracestate` headers are one list (Trace Context 3.3.1).
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(TRACESTATE).iter();
    let first = values.next()?;
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first.clone());
    }
    let joined = rest.fold(first.as_bytes().to_vec(), |mut joined, value| {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
        joined
    });
    HeaderValue::from_bytes(&joined).ok()
}

/// Trace ID, parent ID and the sampled flag. A version above 00 may have more behind (Trace Context 4.3).
fn parse_traceparent(value: &[u8]) -> Option<(u128, u64, bool)> {
    let text = std::str::from_utf8(value).ok()?;
    let version = text.get(..2)?;
    let whole = match version {
        "00" => text.len() == 55,
        "ff" => false,
        _ => text.len() == 55 || text.as_bytes().get(55) == Some(&b'-'),
    };
    let dashes = [2, 35, 52].iter().all(|&at| text.as_bytes().get(at) == Some(&b'-'));
    if !whole || !dashes || !is_hex(version) {
        return None;
    }
    let trace_id = hex_u128(text.get(3..35)?)?;
    let parent_id = hex_u64(text.get(36..52)?)?;
    let flags = text.get(53..55).filter(|flags| is_hex(flags))?;
    Some((trace_id, parent_id, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

fn parse_b3(value: &str) -> Extracted {
    let mut parts = value.split('-');
    let first = parts.next().unwrap_or_default();
    let Some(parent_id) = parts.next().and_then(hex_u64) else {
        return b3_sampled(first).map_or(Extracted::Nothing, Extracted::Decision);
    };
    match b3_trace_id(first) {
        Some(trace_id) => {
            let sampled = parts.next().and_then(b3_sampled);
            Extracted::Parent { trace_id, parent_id, sampled, state: None }
        }
        None => Extracted::Nothing,
    }
}

fn b3_sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn b3_trace_id(text: &str) -> Option<u128> {
    match text.len() {
        16 => hex_u64_any(text).map(u128::from),
        _ => hex_u128(text),
    }
}

fn hex_u128(text: &str) -> Option<u128> {
    let id = (text.len() == 32 && is_hex(text)).then(|| u128::from_str_radix(text, 16).ok())??;
    (id != 0).then_some(id)
}

fn hex_u64(text: &str) -> Option<u64> {
    hex_u64_any(text).filter(|&id| id != 0)
}

fn hex_u64_any(text: &str) -> Option<u64> {
    (text.len() == 16 && is_hex(text)).then(|| u64::from_str_radix(text, 16).ok())?
}

/// Lower case alone is valid (Trace Context 3.2.2).
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn write_hex(out: &mut [u8], mut value: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn hex_value(text: std::fmt::Arguments<'_>) -> HeaderValue {
    HeaderValue::from_str(&text.to_string()).expect("hex digits and dashes are a valid header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().expect("valid"));
        }
        map
    }

    #[test]
    fn a_span_continues_the_trace_that_its_request_carries() {
        let incoming = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let span = TraceContext::start(&incoming, [1, 2, 3], false);
        assert_eq!(span.trace_id, 0x0af7651916cd43dd8448eb211c80319c);
        assert_eq!((span.parent_id, span.span_id, span.sampled), (0xb7ad6b7169203331, 3, true));

        let mut outgoing = HeaderMap::new();
        span.child(7).inject(&mut outgoing);
        assert_eq!(outgoing["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
        assert_eq!(outgoing["tracestate"], "a=1,b=2");
        assert_eq!(span.child(7).parent_id, 3);
    }

    #[test]
    fn a_broken_traceparent_starts_a_new_trace() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
            "0é-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
        ] {
            let mut incoming = headers(&[("tracestate", "a=1")]);
            incoming.insert("traceparent", HeaderValue::from_bytes(bad.as_bytes()).expect("valid"));
            let span = TraceContext::start(&incoming, [0, 0, 0], true);
            assert_eq!(
                span,
                TraceContext { trace_id: 1, span_id: 1, parent_id: 0, sampled: true, state: None },
                "{bad}"
            );
        }
        let twice = headers(&[("traceparent", PARENT), ("traceparent", PARENT)]);
        assert_eq!(TraceContext::start(&twice, [0, 5, 6], false).trace_id, 5);
        let newer = format!("cc{}-more", &PARENT[2..]);
        let span = TraceContext::start(&headers(&[("traceparent", &newer)]), [0, 0, 0], false);
        assert_eq!(span.parent_id, 0xb7ad6b7169203331);
    }

    #[test]
    fn b3_is_accepted_in_both_forms_and_kept_up_to_date() {
        let single =
            headers(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90")]);
        let span = TraceContext::start(&single, [0, 0, 9], false);
        assert_eq!((span.parent_id, span.sampled), (0xe457b5a2e4d86bd1, true));
        let mut outgoing = single;
        span.inject(&mut outgoing);
        assert_eq!(outgoing["b3"], "80f198ee56343ba864fe8b2a57d3eff7-0000000000000009-1");
        assert_eq!(outgoing["traceparent"], "00-80f198ee56343ba864fe8b2a57d3eff7-0000000000000009-01");

        let multiple = headers(&[
            ("x-b3-traceid", "e457b5a2e4d86bd1"),
            ("x-b3-spanid", "05e3ac9a4f6e3b90"),
            ("x-b3-sampled", "0"),
        ]);
        let span = TraceContext::start(&multiple, [0, 0, 9], true);
        assert_eq!((span.trace_id, span.sampled), (0xe457b5a2e4d86bd1, false));
        let mut outgoing = multiple;
        span.inject(&mut outgoing);
        assert_eq!(outgoing["x-b3-spanid"], "0000000000000009");
        assert_eq!(outgoing["x-b3-sampled"], "0");

        let decision = headers(&[("b3", "0")]);
        assert!(!TraceContext::start(&decision, [0, 4, 9], true).sampled);
        let deferred = headers(&[("b3", "e457b5a2e4d86bd1-05e3ac9a4f6e3b90")]);
        assert!(TraceContext::start(&deferred, [0, 4, 9], true).sampled);
    }
}
