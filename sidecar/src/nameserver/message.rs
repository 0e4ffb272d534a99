//! DNS messages, as far as a relay must understand them (RFC 1035, section 4; RFC 6891; RFC 2308).
//!
//! In: bytes of clients and of name servers, none of which are trusted. Out: what is asked, what an answer says of its
//! own lifetime, and where in it the TTLs stand. Everything else stays bytes, so that what passes is passed on unchanged.

use std::ops::Range;
use std::time::Duration;

/// The octets of a message before its question.
pub(super) const HEADER: usize = 12;

/// The longest query that is read, in octets: more than any that a resolver sends.
pub(super) const MAX_QUERY: usize = 4096;

/// The size that an answer over UDP may always have (RFC 1035, section 2.3.4).
const PLAIN_SIZE: u16 = 512;

/// The largest answer over UDP that this end sends, whatever the client allows.
const MAX_UDP: u16 = 4096;

/// The size of datagrams that this end is ready to receive, as it tells clients (RFC 9715).
pub(super) const OWN_SIZE: u16 = 1232;

pub(super) mod rcode {
    pub(in super::super) const NO_ERROR: u8 = 0;
    pub(in super::super) const FORMAT_ERROR: u8 = 1;
    pub(in super::super) const SERVER_FAILURE: u8 = 2;
    pub(in super::super) const NO_SUCH_NAME: u8 = 3;
    pub(in super::super) const NOT_IMPLEMENTED: u8 = 4;
    pub(in super::super) const REFUSED: u8 = 5;
}

const OPT: u16 = 41;
const SOA: u16 = 6;
const ANY: u16 = 255;

/// Flags in the third and fourth octet.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC_AND_CHECKING: u8 = 0x30;
const CHECKING_DISABLED: u8 = 0x10;

/// A client's query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    /// As it was received.
    pub(super) bytes: Vec<u8>,
    /// The name that is asked for, in lower case and without a dot at its end; `None` where it has octets that no host's
    /// name has.
    pub(super) name: Option<String>,
    /// The type that is asked for.
    pub(super) kind: u16,
    /// The class that is asked for.
    pub(super) class: u16,
    /// Where the question stands.
    pub(super) question: Range<usize>,
    /// What it says by EDNS.
    pub(super) edns: Option<Edns>,
    /// It has more than a question and plain EDNS, so its answer is for its sender alone.
    pub(super) special: bool,
}

/// What an OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    /// The largest datagram that its sender takes.
    pub(super) size: u16,
    /// The version of EDNS.
    pub(super) version: u8,
    /// Signatures are wanted.
    pub(super) dnssec: bool,
}

/// Why a query can't be answered as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// It is no query at all: silence is the only safe answer.
    Ignore,
    /// It is one, and broken.
    Format,
    /// It wants something else than an answer to a question.
    NotImplemented,
}

impl Query {
    /// Reads a query.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, QueryError> {
        let flags = *bytes.get(2).filter(|_| bytes.len() >= HEADER).ok_or(QueryError::Ignore)?;
        if flags & RESPONSE != 0 {
            return Err(QueryError::Ignore);
        }
        if flags & OPCODE != 0 {
            return Err(QueryError::NotImplemented);
        }
        Self::read(bytes).ok_or(QueryError::Format)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut walk = Walk { bytes, at: HEADER };
        let [questions, answers, authorities, additionals] = counts(bytes)?;
        if questions != 1 || answers != 0 || authorities != 0 {
            return None;
        }
        let name = walk.question_name()?;
        let (kind, class) = (walk.u16()?, walk.u16()?);
        let question = HEADER..walk.at;
        let (mut edns, mut special) = (None, false);
        for _ in 0..additionals {
            let record = walk.record()?;
            if record.kind == OPT && edns.is_none() && record.root {
                let edns_flags = record.ttl.to_be_bytes();
                edns = Some(Edns {
                    size: record.class,
                    version: edns_flags[1],
                    dnssec: edns_flags[2] & 0x80 != 0,
                });
                special |= edns_flags[1] != 0 || !record.data.is_empty();
            } else if record.kind == OPT {
                return None;
            } else {
                special = true;
            }
        }
        (walk.at == bytes.len()).then(|| Self {
            bytes: bytes.into(),
            name,
            kind,
            class,
            question,
            edns,
            special,
        })
    }

    /// Its identifier.
    pub(super) fn id(&self) -> [u8; 2] {
        [self.bytes[0], self.bytes[1]]
    }

    /// The octets of its question.
    pub(super) fn question(&self) -> &[u8] {
        &self.bytes[self.question.clone()]
    }

    /// Whether the client wants an answer from whoever knows.
    pub(super) fn wants_recursion(&self) -> bool {
        self.bytes[2] & RECURSION_DESIRED != 0
    }

    /// Whether the client checks signatures itself.
    pub(super) fn disables_checking(&self) -> bool {
        self.bytes[3] & CHECKING_DISABLED != 0
    }

    /// What decides about its answer. The case of letters does not.
    pub(super) fn key(&self) -> Vec<u8> {
        let mut key = self.question().to_ascii_lowercase();
        key.push(self.bytes[2] & RECURSION_DESIRED);
        key.push(self.bytes[3] & AUTHENTIC_AND_CHECKING);
        key.push(self.edns.map_or(0, |edns| if edns.dnssec { 2 } else { 1 }));
        key
    }

    /// The longest answer that its sender takes in one datagram.
    pub(super) fn udp_limit(&self) -> usize {
        usize::from(self.edns.map_or(PLAIN_SIZE, |edns| edns.size.clamp(PLAIN_SIZE, MAX_UDP)))
    }

    /// An answer that says nothing but how it went.
    pub(super) fn failure(&self, code: u8) -> Vec<u8> {
        self.bare(
            RESPONSE | self.bytes[2] & RECURSION_DESIRED,
            RECURSION_AVAILABLE | self.bytes[3] & CHECKING_DISABLED | code,
        )
    }

    /// In place of an answer that is too long for a datagram: the client asks again over TCP.
    pub(super) fn truncated(&self, answer: &[u8]) -> Vec<u8> {
        self.bare(answer[2] | TRUNCATED, answer[3])
    }

    fn bare(&self, high: u8, low: u8) -> Vec<u8> {
        let [first, second] = self.id();
        let mut answer = vec![first, second, high, low, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())];
        answer.extend_from_slice(self.question());
        if let Some(edns) = self.edns {
            let [size_high, size_low] = OWN_SIZE.to_be_bytes();
            let flags = if edns.dnssec { 0x80 } else { 0 };
            answer.extend_from_slice(&[0, 0, 41, size_high, size_low, 0, 0, flags, 0, 0, 0]);
        }
        answer
    }
}

/// The answer to what can't be read as a query; `None` where silence is better.
pub(super) fn refuse(bytes: &[u8], error: QueryError) -> Option<Vec<u8>> {
    let code = match error {
        QueryError::Ignore => return None,
        QueryError::Format => rcode::FORMAT_ERROR,
        QueryError::NotImplemented => rcode::NOT_IMPLEMENTED,
    };
    let header = bytes.get(..HEADER)?;
    let kept = header[2] & (OPCODE | RECURSION_DESIRED);
    Some(vec![header[0], header[1], RESPONSE | kept, RECURSION_AVAILABLE | code, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// What an answer of a name server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// How it went; the code's upper bits (RFC 6891) are not 0 for a code that only EDNS has.
    pub(super) code: u16,
    /// It did not fit.
    pub(super) truncated: bool,
    /// It has records that are asked for.
    pub(super) answers: bool,
    /// How long it may be kept; `None`: not at all.
    pub(super) lifetime: Option<Duration>,
    /// Where its TTLs stand.
    pub(super) ttls: Vec<usize>,
}

impl Outline {
    /// Reads an answer to `query`; `None` where it is broken, or the answer to something else. Its identifier is for
    /// whoever asked to check.
    pub(super) fn read(bytes: &[u8], query: &Query) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        if header[2] & RESPONSE == 0 || header[2] & OPCODE != 0 {
            return None;
        }
        let [questions, answers, authorities, additionals] = counts(bytes)?;
        let mut walk = Walk { bytes, at: HEADER };
        let code = u16::from(header[3] & 0x0f);
        match questions {
            1 => {
                let question = bytes.get(query.question.clone())?;
                if !question.eq_ignore_ascii_case(query.question()) {
                    return None;
                }
                walk.at = query.question.end;
            }
            // Some servers leave the question out of an error.
            0 if code != 0 => {}
            _ => return None,
        }
        let mut outline = Self {
            code,
            truncated: header[2] & TRUNCATED != 0,
            answers: false,
            lifetime: None,
            ttls: Vec::new(),
        };
        let (mut shortest, mut negative) = (u32::MAX, None);
        for index in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
            // What is cut off may end anywhere.
            let Some(record) = walk.record() else { return outline.truncated.then_some(outline) };
            if record.kind == OPT {
                outline.code |= u16::from(record.ttl.to_be_bytes()[0]) << 4;
                continue;
            }
            outline.ttls.push(record.ttl_at);
            // RFC 2181, section 8: with its highest bit set it is 0.
            let ttl = if record.ttl > i32::MAX.unsigned_abs() { 0 } else { record.ttl };
            shortest = shortest.min(ttl);
            if index < u32::from(answers) {
                outline.answers |= record.kind == query.kind || query.kind == ANY;
            } else if record.kind == SOA && index < u32::from(answers) + u32::from(authorities) {
                negative = negative.or(record.soa_minimum().map(|minimum| minimum.min(ttl)));
            }
        }
        outline.lifetime = match (outline.code, outline.answers, negative) {
            _ if outline.truncated || walk.at != bytes.len() => None,
            (0, true, _) => Some(shortest),
            // RFC 2308, section 5: without an SOA record it is not kept.
            (0 | 3, false, Some(minimum)) => Some(shortest.min(minimum)),
            _ => None,
        }
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(seconds.into()));
        Some(outline)
    }
}

/// Makes a kept answer that of `query`, after `age` seconds.
pub(super) fn revive(answer: &mut [u8], ttls: &[usize], age: u32, query: &Query) {
    answer[..2].copy_from_slice(&query.id());
    // The letters of the question are in the case in which they were asked for: some clients check.
    if let Some(question) = answer.get_mut(query.question.clone())
        && question.eq_ignore_ascii_case(query.question())
    {
        question.copy_from_slice(query.question());
    }
    for at in ttls {
        if let Some(place) = answer.get_mut(*at..at + 4)
            && let Ok(ttl) = <[u8; 4]>::try_from(&*place)
        {
            place.copy_from_slice(&u32::from_be_bytes(ttl).saturating_sub(age).to_be_bytes());
        }
    }
}

fn counts(bytes: &[u8]) -> Option<[u16; 4]> {
    let mut walk = Walk { bytes, at: 4 };
    Some([walk.u16()?, walk.u16()?, walk.u16()?, walk.u16()?])
}

/// A record, as far as it matters here.
struct Record<'a> {
    /// Its name is the root.
    root: bool,
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    data: &'a [u8],
}

impl Record<'_> {
    /// The last field of an SOA record: how long the absence of a name may be kept.
    fn soa_minimum(&self) -> Option<u32> {
        // Two names, each at least one octet, and five numbers.
        let minimum = self.data.len().checked_sub(4).filter(|_| self.data.len() >= 22)?;
        self.data[minimum..].try_into().ok().map(u32::from_be_bytes)
    }
}

/// A position in a message. It never moves back, so no message makes it run in circles.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The name of a question, which is never compressed; `Some(None)` where no host can have it.
    fn question_name(&mut self) -> Option<Option<String>> {
        let (mut name, mut plain, start) = (String::new(), true, self.at);
        loop {
            let length = usize::from(self.take(1)?[0]);
            if length == 0 {
                break;
            }
            if length > 63 {
                return None;
            }
            let label = self.take(length)?;
            plain &= label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        }
        (self.at - start <= 255).then_some(plain.then_some(name))
    }

    /// Passes over a name, and says whether it is the root.
    fn skip_name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            match self.take(1)?[0] {
                0 => return Some(self.at == start + 1),
                pointer if pointer & 0xc0 == 0xc0 => {
                    self.take(1)?;
                    return Some(false);
                }
                length if length < 64 => self.take(length.into())?,
                _ => return None,
            };
        }
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let root = self.skip_name()?;
        let (kind, class, ttl_at, ttl) = (self.u16()?, self.u16()?, self.at, self.u32()?);
        let length = self.u16()?;
        let data = self.take(length.into())?;
        Some(Record { root, kind, class, ttl, ttl_at, data })
    }
}

#[cfg(test)]
mod tests;
