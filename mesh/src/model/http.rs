//! What becomes of every request of a connection besides its route: what it may switch to, what it is called, what is told of its
//! client, and who says that it answers.

use http::HeaderValue;
use serde::{Serialize, Serializer};

/// Whether requests may switch to a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// As `Upgrade` or `:protocol` names it, in whatever case; [`Upgrade::CONNECT`] for the method, [`Upgrade::ANY`] for all.
    pub protocol: String,
    /// They may; else they are refused.
    pub enabled: bool,
}

impl Upgrade {
    /// Stands for the method CONNECT.
    pub const CONNECT: &str = "CONNECT";
    /// Stands for all protocols that no other entry names, but not for CONNECT. Envoy has no such thing, and no protocol has
    /// this name.
    pub const ANY: &str = "*";

    /// Requests may switch to this protocol.
    pub fn to(protocol: &str) -> Self {
        Self { protocol: protocol.into(), enabled: true }
    }

    /// Requests may switch to whatever they like.
    pub fn all() -> Vec<Self> {
        ["websocket", Self::CONNECT, Self::ANY].map(Self::to).into()
    }

    /// Whether a request may switch to `protocol`: as its route says, else as its listener does, else not.
    pub fn allows(of_route: &[Self], of_listener: &[Self], protocol: &str) -> bool {
        let named = |list: &[Self], name: &str| {
            list.iter().find(|entry| entry.protocol.eq_ignore_ascii_case(name)).map(|entry| entry.enabled)
        };
        let any = || named(of_listener, Self::ANY).filter(|_| !protocol.eq_ignore_ascii_case(Self::CONNECT));
        named(of_route, protocol).or_else(|| named(of_listener, protocol)).or_else(any).unwrap_or(false)
    }
}

/// What becomes of requests of HTTP/1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http10 {
    /// They are taken; else refused (426).
    pub accepted: bool,
    /// The host of those that name none; `None`: they go on without.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_text")]
    pub default_host: Option<HeaderValue>,
}

/// What becomes of `x-request-id`, by which a request is known along its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestIds {
    /// A request without one gets one, and so does any other that comes from outside (with `use_remote_address`).
    pub generate: bool,
    /// Those from outside keep their own.
    pub preserve_external: bool,
    /// The client is told in the response.
    pub tell_client: bool,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { generate: true, preserve_external: false, tell_client: false }
    }
}

/// What becomes of `x-forwarded-client-cert`, which tells who the client has proved to be. But with
/// [`ClientCertificate::AlwaysForward`] no client that proved nothing gets one past here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientCertificate {
    /// It ends here.
    #[default]
    Sanitize,
    /// It passes as it is from who has proved who it is.
    Forward,
    /// The same, and what is known of that client is put behind.
    Append(CertificateDetails),
    /// What is known of the client stands in its place.
    Set(CertificateDetails),
    /// The client's identity stands in its place, and nothing else: what is told within a mesh. Envoy has no such thing.
    Identity,
    /// It passes as it is, from whomever.
    AlwaysForward,
}

/// What is told of a client's certificate, besides its hash and the own identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDetails {
    /// The certificate.
    pub certificate: bool,
    /// All certificates that the client has shown.
    pub chain: bool,
    /// Its subject.
    pub subject: bool,
    /// The URIs of its subject alternative name.
    pub uri: bool,
    /// The DNS names there.
    pub dns: bool,
}

/// What stands in a response's `server`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerHeader {
    /// What the application says.
    #[default]
    PassThrough,
    /// This.
    #[serde(serialize_with = "text")]
    Overwrite(HeaderValue),
    /// What the application says, or this where it says nothing.
    #[serde(serialize_with = "text")]
    AddIfAbsent(HeaderValue),
}

fn text<S: Serializer>(value: &HeaderValue, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}

fn optional_text<S: Serializer>(value: &Option<HeaderValue>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => text(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// What is set of HTTP/2 at one end of a connection; `None`: what the sidecar has there by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// The most streams that are open at once; never 0.
    pub streams: Option<u32>,
    /// How many bytes of a stream the peer may have on the way; at least 65,535.
    pub stream_window: Option<u32>,
    /// How many bytes of all streams it may have on the way; at least 65,535.
    pub connection_window: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_goes_before_its_listener_and_a_name_before_all_others() {
        let no = |protocol: &str| Upgrade { enabled: false, ..Upgrade::to(protocol) };
        let allows = |route: &[Upgrade], listener: &[Upgrade]| Upgrade::allows(route, listener, "WebSocket");
        assert!(!allows(&[], &[]));
        assert!(allows(&[], &[Upgrade::to("websocket")]));
        assert!(!allows(&[], &[no("websocket"), Upgrade::to(Upgrade::ANY)]));
        assert!(!allows(&[no("WEBSOCKET")], &Upgrade::all()));
        assert!(allows(&[Upgrade::to("websocket")], &[no("websocket")]));
        assert!(allows(&[no("other")], &Upgrade::all()));
        assert!(Upgrade::allows(&[], &Upgrade::all(), "connect"));
        assert!(!Upgrade::allows(&[], &[Upgrade::to(Upgrade::ANY)], Upgrade::CONNECT));
    }
}
