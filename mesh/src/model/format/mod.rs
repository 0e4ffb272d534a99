//! Texts with Envoy's command operators, as header values and lines of a log have them: `%REQ(x-user?host):8%`.
//!
//! In: the text. Out: its parts, read once, when it is configured; then, for each request, its value. What an operator stands for
//! is told by who asks: nothing here knows a request.

use std::fmt;

use http::HeaderName;
use serde::{Serialize, Serializer};

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
    /// The cluster.
    Cluster,
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
            let read = match command(&text[at + 1..]) {
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

/// `NAME(ARGUMENT):LENGTH%`, as it stands behind a percent sign.
struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    most: Option<usize>,
    /// Of all of it, with the percent sign at its end.
    length: usize,
}

fn command(text: &[u8]) -> Option<Command<'_>> {
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let name = text.iter().take_while(|byte| is_name(byte)).count();
    let mut at = name;
    let mut argument = None;
    if text.get(at) == Some(&b'(') {
        let length = text[at + 1..].iter().position(|byte| *byte == b')')?;
        argument = Some(std::str::from_utf8(&text[at + 1..at + 1 + length]).ok()?);
        at += length + 2;
    }
    let mut most = None;
    if text.get(at) == Some(&b':') {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        most = Some(std::str::from_utf8(&text[at + 1..at + 1 + digits]).ok()?.parse().ok()?);
        at += 1 + digits;
    }
    if name == 0 || text.get(at) != Some(&b'%') {
        return None;
    }
    let name = std::str::from_utf8(&text[..name]).ok()?;
    Some(Command { name, argument, most, length: at + 1 })
}

impl Command<'_> {
    fn operator(&self) -> Result<Operator, FormatError> {
        let operator = match self.name {
            "REQ" => {
                let (field, other) = self.fields()?;
                return Ok(Operator::Request(field, other));
            }
            "RESP" => {
                let (field, other) = self.fields()?;
                return Ok(Operator::Response(field, other));
            }
            "START_TIME" => {
                let format = TimeFormat::parse(self.argument.unwrap_or_default());
                let format = format.map_err(|problem| self.error(problem))?;
                return match self.most {
                    None => Ok(Operator::StartTime(format)),
                    Some(_) => Err(self.error("takes no length")),
                };
            }
            "PROTOCOL" => Operator::Protocol,
            "DOWNSTREAM_REMOTE_ADDRESS" => Operator::Client(AddressPart::Whole),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Client(AddressPart::Ip),
            "DOWNSTREAM_REMOTE_PORT" => Operator::Client(AddressPart::Port),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::Peer(AddressPart::Whole),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Peer(AddressPart::Ip),
            "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::Peer(AddressPart::Port),
            "DOWNSTREAM_LOCAL_ADDRESS" => Operator::Local(AddressPart::Whole),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::Local(AddressPart::Ip),
            "DOWNSTREAM_LOCAL_PORT" => Operator::Local(AddressPart::Port),
            "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
            "UPSTREAM_PEER_URI_SAN" => Operator::UpstreamPeerUriSan,
            "UPSTREAM_HOST" => Operator::Host,
            "UPSTREAM_REMOTE_ADDRESS" => Operator::Upstream(AddressPart::Whole),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Upstream(AddressPart::Ip),
            "UPSTREAM_REMOTE_PORT" => Operator::Upstream(AddressPart::Port),
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::Cluster,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::Attempts,
            "ROUTE_NAME" => Operator::Route,
            "RESPONSE_CODE" => Operator::Status,
            "RESPONSE_FLAGS" => Operator::Flags,
            "RESPONSE_CODE_DETAILS" => Operator::Details,
            "REQUESTED_SERVER_NAME" => Operator::ServerName,
            "HOSTNAME" => Operator::Hostname,
            "BYTES_RECEIVED" => Operator::BytesReceived,
            "BYTES_SENT" => Operator::BytesSent,
            "DURATION" => Operator::Duration,
            "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => Operator::GrpcStatus,
            "TRACE_ID" => Operator::TraceId,
            // With whatever argument.
            other => return Ok(Operator::Other(other.into())),
        };
        match (self.argument, self.most) {
            // Envoy's GRPC_STATUS may be told how to write it.
            (Some(_), None) if operator == Operator::GrpcStatus => Ok(operator),
            (None, None) => Ok(operator),
            _ => Err(self.error("takes no parameter and no length")),
        }
    }

    /// `NAME?OTHER`.
    fn fields(&self) -> Result<(HeadField, Option<HeadField>), FormatError> {
        let argument = self.argument.filter(|argument| !argument.is_empty());
        let argument = argument.ok_or_else(|| self.error("needs the name of a header"))?;
        let mut names = argument.split('?').map(|name| {
            HeadField::parse(name).ok_or_else(|| self.error("names what can't be the name of a header"))
        });
        let field = names.next().unwrap_or_else(|| Err(self.error("needs the name of a header")))?;
        let other = names.next().transpose()?;
        match names.next() {
            None => Ok((field, other)),
            Some(_) => Err(self.error("names more than one alternative")),
        }
    }

    fn error(&self, problem: &'static str) -> FormatError {
        FormatError::Argument { operator: self.name.into(), problem }
    }
}

impl HeadField {
    fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Some(match name.as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            _ => Self::Named(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }
}

#[cfg(test)]
mod tests;
