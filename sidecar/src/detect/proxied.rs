//! The header that a proxy in front writes before the client's first byte: PROXY protocol, versions 1 and 2 (HAProxy).
//!
//! In: the first bytes of a connection. Out: how many of them are the header, and whose connection it stands for. A header is at
//! most 64 KiB long, which its length field bounds, or 107 bytes as text.

use std::array::from_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tulle_mesh::model::ProxyProtocol;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its length, in bytes.
    pub(super) len: usize,
    /// The client; `None` for a connection that the proxy makes for itself, or of a kind that has no address.
    pub(super) client: Option<SocketAddr>,
}

/// Why there is no whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// So many bytes are needed at least.
    More(usize),
    /// What is there does not begin as a header does.
    Absent,
    /// It begins as one and is none.
    Broken,
}

/// Reads a header of a version that `how` takes; what begins as one of another version begins as none.
pub(super) fn parse(bytes: &[u8], how: ProxyProtocol) -> Result<Header, NoHeader> {
    let begins = |with: &[u8]| {
        let len = bytes.len().min(with.len());
        bytes[..len] == with[..len]
    };
    match () {
        () if bytes.is_empty() => Err(NoHeader::More(1)),
        () if how.version_2 && begins(SIGNATURE) => parse_binary(bytes),
        () if how.version_1 && begins(TEXT) => parse_text(bytes),
        () => Err(NoHeader::Absent),
    }
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const TEXT: &[u8] = b"PROXY ";
/// The longest header as text, with its end of line.
const LONGEST_TEXT: usize = 107;
/// The signature, the command, the family, and the length of the rest.
const FIXED: usize = 16;

fn parse_text(bytes: &[u8]) -> Result<Header, NoHeader> {
    let seen = &bytes[..bytes.len().min(LONGEST_TEXT)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return Err(if bytes.len() < LONGEST_TEXT {
            NoHeader::More(bytes.len() + 1)
        } else {
            NoHeader::Broken
        });
    };
    let line = std::str::from_utf8(&seen[..end]).map_err(|_| NoHeader::Broken)?;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Header { len: end + 2, client: None });
    }
    let [Some(source), Some(local), Some(port), Some(local_port), None] = from_fn(|_| words.next()) else {
        return Err(NoHeader::Broken);
    };
    let source = match family {
        Some("TCP4") => address::<Ipv4Addr>(source, local),
        Some("TCP6") => address::<Ipv6Addr>(source, local),
        _ => None,
    };
    let port = local_port.parse::<u16>().ok().and(port.parse().ok());
    let client = source.zip(port).map(SocketAddr::from).ok_or(NoHeader::Broken)?;
    Ok(Header { len: end + 2, client: Some(client) })
}

/// The first of two addresses of one family.
fn address<Ip: FromStr + Into<IpAddr>>(source: &str, local: &str) -> Option<IpAddr> {
    local.parse::<Ip>().ok().and(source.parse::<Ip>().ok()).map(Into::into)
}

fn parse_binary(bytes: &[u8]) -> Result<Header, NoHeader> {
    let Some((head, rest)) = bytes.split_at_checked(FIXED) else { return Err(NoHeader::More(FIXED)) };
    let (command, family) = (head[12], head[13]);
    let len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let whole = Header { len: FIXED + len, client: None };
    let body = || rest.get(..len).ok_or(NoHeader::More(FIXED + len));
    match (command, family) {
        // A connection of the proxy's own, or one that it knows no address of.
        (0x20, _) | (0x21, 0x00) => body().map(|_| whole),
        (0x21, 0x11) if len >= 12 => {
            let body = body()?;
            let ip = <[u8; 4]>::try_from(&body[..4]).map_err(|_| NoHeader::Broken)?;
            let port = u16::from_be_bytes([body[8], body[9]]);
            Ok(Header { client: Some(SocketAddr::new(ip.into(), port)), ..whole })
        }
        (0x21, 0x21) if len >= 36 => {
            let body = body()?;
            let ip = <[u8; 16]>::try_from(&body[..16]).map_err(|_| NoHeader::Broken)?;
            let port = u16::from_be_bytes([body[32], body[33]]);
            Ok(Header { client: Some(SocketAddr::new(ip.into(), port)), ..whole })
        }
        _ => Err(NoHeader::Broken),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: ProxyProtocol = ProxyProtocol { optional: false, version_1: true, version_2: true };

    fn client(bytes: &[u8]) -> Result<(usize, Option<String>), NoHeader> {
        parse(bytes, BOTH).map(|header| (header.len, header.client.map(|client| client.to_string())))
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[command, family], &len, body].concat()
    }

    #[test]
    fn the_client_is_whom_the_header_names() {
        let line = b"PROXY TCP4 10.1.2.3 10.0.0.1 4321 80\r\nGET /";
        assert_eq!(client(line), Ok((38, Some("10.1.2.3:4321".into()))));
        let line = b"PROXY TCP6 fd00::7 fd00::1 4321 80\r\n";
        assert_eq!(client(line), Ok((line.len(), Some("[fd00::7]:4321".into()))));
        assert_eq!(client(b"PROXY UNKNOWN what ever\r\n"), Ok((25, None)));
        let body = [10, 1, 2, 3, 10, 0, 0, 1, 0x10, 0xe1, 0, 80, 0xff];
        assert_eq!(client(&binary(0x21, 0x11, &body)), Ok((29, Some("10.1.2.3:4321".into()))));
        let mut body = [0; 36];
        (body[15], body[32], body[33]) = (1, 0x10, 0xe1);
        assert_eq!(client(&binary(0x21, 0x21, &body)), Ok((52, Some("[::1]:4321".into()))));
        assert_eq!(client(&binary(0x20, 0x00, &[1, 2])), Ok((18, None)));
        assert_eq!(client(&binary(0x21, 0x00, &[])), Ok((16, None)));
    }

    #[test]
    fn what_is_no_header_is_told_from_a_broken_one() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PROXIES", b"\r\n\r\nGET", b"\x16\x03\x01"] {
            assert_eq!(client(bytes), Err(NoHeader::Absent), "{bytes:?}");
        }
        for line in [
            "PROXY TCP4 10.1.2.3 10.0.0.1 4321\r\n",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4321 80 1\r\n",
            "PROXY TCP4 fd00::7 fd00::1 4321 80\r\n",
            "PROXY TCP4 10.1.2.3 10.0.0.1 70000 80\r\n",
            "PROXY UDP4 10.1.2.3 10.0.0.1 1 80\r\n",
        ] {
            assert_eq!(client(line.as_bytes()), Err(NoHeader::Broken), "{line}");
        }
        assert_eq!(client(&[b"PROXY ", &[b'x'; 200][..]].concat()), Err(NoHeader::Broken));
        assert_eq!(client(&binary(0x21, 0x11, &[0; 11])), Err(NoHeader::Broken));
        assert_eq!(client(&binary(0x21, 0x31, &[0; 216])), Err(NoHeader::Broken));
        assert_eq!(client(&binary(0x31, 0x11, &[0; 12])), Err(NoHeader::Broken));
        let none = ProxyProtocol { optional: true, version_1: false, version_2: false };
        assert_eq!(parse(&binary(0x20, 0x00, &[]), none), Err(NoHeader::Absent));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n", none), Err(NoHeader::Absent));
    }

    proptest! {
        #[test]
        fn a_part_asks_for_more_until_it_is_whole(cut in 0_usize..38) {
            let line = b"PROXY TCP4 10.1.2.3 10.0.0.1 4321 80\r\n";
            let is_partial = matches!(parse(&line[..cut], BOTH), Err(NoHeader::More(wanted)) if wanted > cut);
            prop_assert!(is_partial);
            let body = binary(0x21, 0x11, &[7; 22]);
            let is_partial = matches!(parse(&body[..cut], BOTH), Err(NoHeader::More(wanted)) if wanted > cut);
            prop_assert!(is_partial);
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0..3) {
            let bytes = match kind {
                0 => bytes,
                1 => [SIGNATURE, &bytes].concat(),
                _ => [TEXT, &bytes].concat(),
            };
            if let Ok(header) = parse(&bytes, BOTH) {
                prop_assert!(header.len <= bytes.len());
            }
        }
    }
}
