//! Texts with Envoy's command operators, as header values and lines of a log have them: `%REQ(x-user?host):8%`.
//!
//! In: the text. Out: its parts, read once, when it is configured; then, for each request, its value. What an operator stands for
//! is told by who asks: nothing here knows a request.

use std::fmt;

use http::HeaderName;
use serde::{Serialize, Serializer};

mod command;
mod time;

pub use time::TimeFormat;

/// A text with command operators.
#[derive(Clone, PartialEq, Eq)]
pub struct Format {
    source: Box<[u8]>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<[u8]>),
    /// With the most bytes of its value.
    Value(Operator, Option<usize>),
}

/// What a part of a text stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// A field of the request, or, where it has none, another.
    Request(HeadField, Option<HeadField>),
    /// A field of the response, or, where it has none, another.
    Response(HeadField, Option<HeadField>),
    /// The request's version of HTTP.
    Protocol,
    /// When the request came.
    StartTime(TimeFormat),
    /// Who the client is, also behind proxies that are believed.
    Client(AddressPart),
    /// The other end of the client's connection.
    Peer(AddressPart),
    /// The address that the client dialled.
    Local(AddressPart),
    /// The endpoint that was chosen.
    Host,
    /// The endpoint that was connected to.
    Upstream(AddressPart),
    /// What the cluster is called for people.
    Cluster,
    /// The cluster's name.
    ClusterName,
    /// The route.
    Route,
    /// The response's status.
    Status,
    /// Why the response is the proxy's own, in Envoy's abbreviations.
    Flags,
    /// The same, in more words.
    Details,
    /// The SNI of the client's connection.
    ServerName,
    /// The request's path.
    Path(PathPart),
    /// A parameter of the request's query.
    QueryParameter(Box<str>),
    /// What the request is called: its `x-request-id`.
    StreamId,
    /// Of the TLS of the client's connection.
    Tls(TlsPart),
    /// Whom the client proved to be.
    PeerUriSan,
    /// Whom the endpoint proved to be.
    UpstreamPeerUriSan,
    /// The name of the proxy's host.
    Hostname,
    /// Bytes of the request's body.
    BytesReceived,
    /// Bytes of the response's body.
    BytesSent,
    /// Milliseconds since the request came.
    Duration,
    /// How many attempts were made.
    Attempts,
    /// The response's gRPC status.
    GrpcStatus,
    /// The trace that the request is part of.
    TraceId,
    /// One of Envoy's that Tulle does not have.
    Other(Box<str>),
}

/// A field of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadField {
    /// `:method`.
    Method,
    /// `:path`: with the query.
    Path,
    /// `:authority`, and `host`, which is the same.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status`.
    Status,
    /// Any other.
    Named(HeaderName),
}

/// What of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPart {
    /// All.
    Whole,
    /// The IP.
    Ip,
    /// The port.
    Port,
}

/// Which path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPart {
    /// With the query.
    pub query: bool,
    /// Before the route has rewritten it, or after.
    pub which: PathMoment,
}

/// When a path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMoment {
    /// As it came, where the route rewrites it; else there is none.
    Original,
    /// As it is at the moment.
    Current,
    /// As it came.
    Came,
}

/// What of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsPart {
    /// The version.
    Version,
    /// The cipher suite, by its name in IANA's registry.
    Cipher,
    /// The subject of the client's certificate.
    Subject,
    /// Who has issued it.
    Issuer,
    /// Its serial number.
    Serial,
    /// Its SHA-256.
    Fingerprint,
    /// The DNS names that it is for.
    Dns,
    /// The certificate.
    Certificate,
    /// Since when it is valid.
    ValidFrom(TimeFormat),
    /// Until when.
    ValidUntil(TimeFormat),
    /// The own identity.
    LocalUriSan,
}

/// Why a text is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// A percent sign at this byte stands for nothing.
    Percent(usize),
    /// The argument of an operator is missing, not valid, or one too many.
    Argument {
        /// The operator's name.
        operator: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(at) => {
                write!(f, "the % at byte {at} begins no command operator: write a literal % as %%")
            }
            Self::Argument { operator, problem } => write!(f, "%{operator}% {problem}"),
        }
    }
}

impl std::error::Error for FormatError {}

impl Format {
    /// Reads a text as Envoy does.
    ///
    /// # Errors
    /// When a percent sign is neither doubled nor part of an operator, or an operator has not the argument that it takes.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, FormatError> {
        Self::read(text.as_ref(), false)
    }

    /// Reads a text in which everything that is no operator stands for itself.
    pub fn lenient(text: impl AsRef<[u8]>) -> Self {
        Self::read(text.as_ref(), true).expect("all that could be wrong is text")
    }

    /// The text as it was read.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    /// The value, where it needs nothing to be told.
    pub fn literal(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(b""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// What stands between its operators.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(&**text),
            Part::Value(..) => None,
        })
    }

    /// Its operators, in order.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(operator, _) => Some(operator),
            Part::Text(_) => None,
        })
    }

    /// Writes the value behind `out`. `value` writes what an operator stands for; where that is nothing, `missing` is put in its
    /// place.
    pub fn write(&self, missing: &[u8], out: &mut Vec<u8>, mut value: impl FnMut(&Operator, &mut Vec<u8>)) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Value(operator, most) => {
                    let start = out.len();
                    value(operator, out);
                    if out.len() == start {
                        out.extend_from_slice(missing);
                    }
                    if let Some(most) = most {
                        out.truncate(start.saturating_add(*most));
                    }
                }
            }
        }
    }

    fn read(text: &[u8], lenient: bool) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            if byte != b'%' {
                literal.push(byte);
                at += 1;
                continue;
            }
            if text.get(at + 1) == Some(&b'%') {
                literal.push(byte);
                at += 2;
                continue;
            }
            let read = match command::read(&text[at + 1..]) {
                Some(command) => command.operator().map(|operator| (operator, command)),
                None => Err(FormatError::Percent(at)),
            };
            match read {
                Ok((operator, command)) => {
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Value(operator, command.most));
                    at += 1 + command.length;
                }
                Err(_) if lenient => {
                    literal.push(byte);
                    at += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Ok(Self { source: text.into(), parts: parts.into() })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.source))
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.source))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
