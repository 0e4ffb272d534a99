//! Command operators as they are written.

use http::HeaderName;

use super::{AddressPart, FormatError, HeadField, Operator, PathMoment, PathPart, TimeFormat, TlsPart};

/// `NAME(ARGUMENT):LENGTH%`, as it stands behind a percent sign.
pub(super) struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    pub(super) most: Option<usize>,
    /// Of all of it, with the percent sign at its end.
    pub(super) length: usize,
}

pub(super) fn read(text: &[u8]) -> Option<Command<'_>> {
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
    /// The operator that it is.
    pub(super) fn operator(&self) -> Result<Operator, FormatError> {
        let operator = match self.name {
            "REQ" => {
                let (field, other) = self.fields()?;
                return Ok(Operator::Request(field, other));
            }
            "RESP" => {
                let (field, other) = self.fields()?;
                return Ok(Operator::Response(field, other));
            }
            "START_TIME" => return self.time().map(Operator::StartTime),
            "DOWNSTREAM_PEER_CERT_V_START" => return self.time().map(TlsPart::ValidFrom).map(Operator::Tls),
            "DOWNSTREAM_PEER_CERT_V_END" => return self.time().map(TlsPart::ValidUntil).map(Operator::Tls),
            "PATH" => return self.path().map(Operator::Path),
            "QUERY_PARAM" => {
                let name = self.argument.filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| self.error("needs the name of a parameter"))?;
                return Ok(Operator::QueryParameter(name.into()));
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
            "STREAM_ID" => Operator::StreamId,
            "DOWNSTREAM_TLS_VERSION" => Operator::Tls(TlsPart::Version),
            "DOWNSTREAM_TLS_CIPHER" => Operator::Tls(TlsPart::Cipher),
            "DOWNSTREAM_PEER_SUBJECT" => Operator::Tls(TlsPart::Subject),
            "DOWNSTREAM_PEER_ISSUER" => Operator::Tls(TlsPart::Issuer),
            "DOWNSTREAM_PEER_SERIAL" => Operator::Tls(TlsPart::Serial),
            "DOWNSTREAM_PEER_FINGERPRINT_256" => Operator::Tls(TlsPart::Fingerprint),
            "DOWNSTREAM_PEER_DNS_SAN" => Operator::Tls(TlsPart::Dns),
            "DOWNSTREAM_PEER_CERT" => Operator::Tls(TlsPart::Certificate),
            "DOWNSTREAM_LOCAL_URI_SAN" => Operator::Tls(TlsPart::LocalUriSan),
            "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
            "UPSTREAM_PEER_URI_SAN" => Operator::UpstreamPeerUriSan,
            "UPSTREAM_HOST" => Operator::Host,
            "UPSTREAM_REMOTE_ADDRESS" => Operator::Upstream(AddressPart::Whole),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Upstream(AddressPart::Ip),
            "UPSTREAM_REMOTE_PORT" => Operator::Upstream(AddressPart::Port),
            "UPSTREAM_CLUSTER" => Operator::Cluster,
            "UPSTREAM_CLUSTER_RAW" => Operator::ClusterName,
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

    /// How a time is written.
    fn time(&self) -> Result<TimeFormat, FormatError> {
        let format = TimeFormat::parse(self.argument.unwrap_or_default());
        let format = format.map_err(|problem| self.error(problem))?;
        if self.most.is_none() { Ok(format) } else { Err(self.error("takes no length")) }
    }

    /// `WITH:WHICH`, each of which may be left out.
    fn path(&self) -> Result<PathPart, FormatError> {
        let parts = self.argument.map(|argument| argument.split_once(':').unwrap_or((argument, "")));
        let (with, which) = parts.unwrap_or_default();
        let query = match with {
            "" | "WQ" => true,
            "NQ" => false,
            _ => return Err(self.error("is with the query (WQ) or without (NQ)")),
        };
        let which = match which {
            "ORIG" => PathMoment::Original,
            "PATH" => PathMoment::Current,
            "" | "ORIG_OR_PATH" => PathMoment::Came,
            _ => return Err(self.error("is ORIG, PATH or ORIG_OR_PATH")),
        };
        Ok(PathPart { query, which })
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
