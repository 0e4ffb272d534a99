//! The address of a name, asked for as a program on a host would.
//!
//! In: a host and a name. Out: what the resolver that the host's queries reach says, one datagram there and one back.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::host::Host;

/// The name server that hosts are told of. It is not there: redirection brings queries to the sidecar.
pub(super) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

const A: u16 = 1;
const INTERNET: u16 = 1;
const RECURSION_DESIRED: u8 = 1;

/// The first IPv4 address of a name.
pub(super) async fn lookup(host: &Host, name: &str) -> Result<Ipv4Addr, String> {
    let fail = |reason: String| format!("{name} on {host:?}: {reason}");
    let socket = host.udp((Ipv4Addr::UNSPECIFIED, 0)).map_err(|error| fail(error.to_string()))?;
    let id = fastrand::u16(..).to_be_bytes();
    let server = SocketAddr::from((NAME_SERVER, 53));
    socket.connect(server).await.map_err(|error| fail(error.to_string()))?;
    socket.send(&query(id, name)).await.map_err(|error| fail(error.to_string()))?;
    let mut answer = vec![0; 4096];
    let received = timeout(Duration::from_secs(5), socket.recv(&mut answer)).await;
    let length = received.map_err(|_| fail("no answer".into()))?.map_err(|error| fail(error.to_string()))?;
    answer.truncate(length);
    if !answer.starts_with(&id) {
        return Err(fail("the answer to another question".into()));
    }
    first_address(&answer)
        .ok_or_else(|| fail(format!("no address (code {})", answer.get(3).map_or(0, |byte| byte & 15))))
}

/// RFC 1035 section 4.1: a header and a question.
fn query(id: [u8; 2], name: &str) -> Vec<u8> {
    let mut bytes = vec![id[0], id[1], RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&A.to_be_bytes());
    bytes.extend_from_slice(&INTERNET.to_be_bytes());
    bytes
}

fn first_address(message: &[u8]) -> Option<Ipv4Addr> {
    let number = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let mut at = after_name(message, 12)? + 4;
    for _ in 0..number(6)? {
        at = after_name(message, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == A {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    None
}

/// Where a name that begins at `at` ends: with an empty label, or a pointer to another's labels.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
