//! The part of a TLS ClientHello that routing needs (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3; RFC 7301).
//!
//! In: the bytes of a connection from its start, however they are cut into records and segments. Out: the server name
//! and the protocols that are offered. It checks no more than it must: whether the handshake is sound is for whoever
//! ends it.

use std::borrow::Cow;

/// What a client asks for before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server name, in lower case; `None` without one, or with one that is no host name.
    pub(crate) server_name: Option<String>,
    /// The protocols that ALPN offers, best first.
    pub(crate) alpn: Vec<String>,
}

pub(super) enum Parsed {
    Hello(ClientHello),
    NotTls,
    /// At least so many bytes are missing.
    More(usize),
}

/// The content type of a handshake record.
pub(super) const HANDSHAKE: u8 = 0x16;

/// Reads the ClientHello at the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let message = match handshake_bytes(bytes) {
        Ok(message) => message,
        Err(NotTls) => return Parsed::NotTls,
    };
    match message.first() {
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Parsed::NotTls,
        None => return Parsed::More(1),
    }
    let mut reader = Reader(&message[1..]);
    match reader.vector24() {
        // A body that makes no sense is still TLS, if only to be refused as such by whoever ends it.
        Some(body) => Parsed::Hello(hello(Reader(body)).unwrap_or_default()),
        // Headers of more records may come on top.
        None => Parsed::More(whole_len(&message).saturating_sub(message.len()).max(1)),
    }
}

/// How long the message is by its own account, or as much as it takes to know.
fn whole_len(message: &[u8]) -> usize {
    match message {
        [_, high, middle, low, ..] => {
            4 + (usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low))
        }
        _ => 4,
    }
}

struct NotTls;

/// The contents of all handshake records at the start of `bytes`, the last of which may be incomplete.
fn handshake_bytes(bytes: &[u8]) -> Result<Cow<'_, [u8]>, NotTls> {
    let (first, mut rest) = record(bytes)?;
    let mut message = Cow::Borrowed(first);
    while !rest.is_empty() && !is_whole(&message) {
        let (next, after) = record(rest)?;
        message.to_mut().extend_from_slice(next);
        rest = after;
    }
    Ok(message)
}

fn is_whole(message: &[u8]) -> bool {
    message.len() >= 4 && message.len() >= whole_len(message)
}

/// The content of the handshake record at the start of `bytes`, as far as it is there, and what follows it.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8]), NotTls> {
    // Versions up to 0x0304 stand here; the minor one of a ClientHello says nothing.
    if bytes[0] != HANDSHAKE
        || bytes.get(1).is_some_and(|major| *major != 3)
        || bytes.get(2).is_some_and(|v| *v > 4)
    {
        return Err(NotTls);
    }
    let Some(header) = bytes.get(..5) else { return Ok((&[], &[])) };
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if len == 0 || len > LONGEST_RECORD {
        return Err(NotTls);
    }
    let body = &bytes[5..];
    Ok(body.split_at(len.min(body.len())))
}

fn hello(mut body: Reader<'_>) -> Option<ClientHello> {
    body.take(2 + 32)?; // version, random
    body.vector8()?; // session ID
    body.vector16()?; // cipher suites
    body.vector8()?; // compression methods
    let mut extensions = Reader(body.vector16().unwrap_or_default());
    let mut hello = ClientHello::default();
    while let Some(kind) = extensions.u16() {
        let content = Reader(extensions.vector16()?);
        match kind {
            SERVER_NAME => hello.server_name = server_name(content),
            ALPN => hello.alpn = protocols(content).unwrap_or_default(),
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut content: Reader<'_>) -> Option<String> {
    let mut names = Reader(content.vector16()?);
    while let Some(kind) = names.take(1) {
        let name = names.vector16()?;
        if kind == [0] {
            let valid = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            let whole = !name.is_empty() && name.len() <= LONGEST_NAME && name.iter().all(valid);
            return whole.then(|| String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    None
}

fn protocols(mut content: Reader<'_>) -> Option<Vec<String>> {
    let mut list = Reader(content.vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() && protocols.len() < MOST_PROTOCOLS {
        protocols.push(String::from_utf8_lossy(list.vector8()?).into_owned());
    }
    Some(protocols)
}

const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const LONGEST_RECORD: usize = 16 * 1024;
const LONGEST_NAME: usize = 255;
const MOST_PROTOCOLS: usize = 16;

/// Takes fields off the front of a message; `None` when it ends too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    fn vector24(&mut self) -> Option<&'a [u8]> {
        let b = self.take(3)?;
        let len = u32::from_be_bytes([0, b[0], b[1], b[2]]);
        self.take(usize::try_from(len).ok()?)
    }
}
