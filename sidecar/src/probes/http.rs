//! GET requests of probes, as a kubelet makes them.
//!
//! Redirects are followed where they stay at the application's own address; one that leads elsewhere is an answer like any
//! other below 400. A certificate is not looked at, and of the body no more than [`MAX_BODY`] is waited for.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode};
use tokio_rustls::TlsConnector;

use super::redirect::{self, Next};
use super::{Verdict, connect, failure, server_name};
use crate::config::HttpCheck;
use crate::http::h1::decode::{Decoded, Decoder};
use crate::http::h1::head::HeadEnd;
use crate::http::h1::response::take_response;
use crate::http::h1::transport::Transport;
use crate::io::Stream;
use crate::tls::unverified_client;

/// The most of a body that is read, in bytes, as a kubelet has it.
const MAX_BODY: usize = 10 * 1024;
/// How many redirects are followed, as a kubelet has it.
const MAX_REDIRECTS: usize = 10;
/// The beginning is the kubelet's, by which applications and their logs know a probe.
const PROBER: &str = concat!("kube-probe/tulle-", env!("CARGO_PKG_VERSION"));

/// Asks the application at `ip`.
///
/// # Errors
/// Why there is no verdict of the application.
pub(super) async fn check(check: &HttpCheck, ip: IpAddr) -> Result<Verdict, String> {
    let mut place = Place { tls: check.tls, port: check.port.get(), target: check.target.clone() };
    for _ in 0..=MAX_REDIRECTS {
        let (answer, _) = get(ip, &place, &check.headers).await?;
        match redirect::next(&answer, ip, &place)? {
            Next::Here => return Ok(verdict(answer.status())),
            Next::Follow(next) => place = next,
        }
    }
    Err(format!("it was redirected more than {MAX_REDIRECTS} times"))
}

/// What is asked for, of the application's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Whether over TLS.
    pub(crate) tls: bool,
    /// The port.
    pub(crate) port: u16,
    /// Path and query.
    pub(crate) target: PathAndQuery,
}

/// Sends a GET request and reads the answer, of its body the first [`MAX_BODY`] bytes or a little more.
///
/// # Errors
/// What went wrong on the way.
pub(crate) async fn get(
    ip: IpAddr,
    place: &Place,
    headers: &HeaderMap,
) -> Result<(Response<()>, Vec<u8>), String> {
    let address = SocketAddr::new(ip, place.port);
    let socket = connect(address).await?;
    let stream = if place.tls {
        let connecting = CONNECTOR.connect(server_name(ip), socket).await;
        Stream::TlsClient(Box::new(connecting.map_err(|error| failure("the TLS handshake", &error))?))
    } else {
        Stream::from(socket)
    };
    let mut transport = Transport::new(stream);
    transport.write.put_slice(&head(address, place, headers));
    poll_fn(|cx| transport.poll_flush(cx)).await.map_err(|error| failure("sending the request", &error))?;
    read(&mut transport).await
}

static CONNECTOR: LazyLock<TlsConnector> =
    LazyLock::new(|| TlsConnector::from(Arc::new(unverified_client())));

/// The request. What is given replaces what would be said; the connection's own fields are not the probe's to say.
fn head(address: SocketAddr, place: &Place, headers: &HeaderMap) -> Vec<u8> {
    let mut head = format!("GET {} HTTP/1.1\r\n", place.target).into_bytes();
    let mut field = |name: &HeaderName, value: &[u8]| {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    let usual = [(HOST, address.to_string()), (USER_AGENT, PROBER.into()), (ACCEPT, "*/*".into())];
    for (name, value) in usual.iter().filter(|(name, _)| !headers.contains_key(name)) {
        field(name, value.as_bytes());
    }
    field(&CONNECTION, b"close");
    for (name, value) in headers {
        if ![CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(name) {
            field(name, value.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

async fn read(transport: &mut Transport) -> Result<(Response<()>, Vec<u8>), String> {
    let mut end = HeadEnd::default();
    let head = loop {
        match take_response(&mut transport.read, &mut end, &Method::GET)? {
            // The answer follows, but for a switch to another protocol.
            Some(head)
                if head.response.status().is_informational()
                    && head.response.status() != StatusCode::SWITCHING_PROTOCOLS => {}
            Some(head) => break head,
            None if fill(transport).await? == 0 => {
                return Err("it closed the connection without an answer".into());
            }
            None => {}
        }
    };
    let mut decoder = Decoder::new(head.framing);
    let mut body = Vec::new();
    while body.len() < MAX_BODY && !decoder.is_done() {
        match decoder.decode(&mut transport.read)? {
            Decoded::Data(data) => body.extend_from_slice(&data),
            Decoded::Trailers(_) | Decoded::End => break,
            Decoded::More if fill(transport).await? > 0 => {}
            Decoded::More if matches!(decoder, Decoder::UntilClose) => break,
            Decoded::More => return Err("it closed the connection within its answer".into()),
        }
    }
    Ok((head.response, body))
}

async fn fill(transport: &mut Transport) -> Result<usize, String> {
    poll_fn(|cx| transport.poll_fill(cx)).await.map_err(|error| failure("reading the answer", &error))
}

fn verdict(status: StatusCode) -> Verdict {
    if (200..400).contains(&status.as_u16()) {
        return Verdict::passed(format!("the application answers {}", status.as_u16()));
    }
    let reason = format!("the application answers {}", status.as_u16());
    let failure = status.is_client_error() || status.is_server_error();
    Verdict { status: if failure { status } else { StatusCode::SERVICE_UNAVAILABLE }, reason }
}
