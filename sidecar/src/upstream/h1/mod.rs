//! One request and its response on an HTTP/1.1 connection.
//!
//! In: a request. Out: its response, whose body goes on where the head ended: it reads from the connection, sends what is
//! left of the request's body, and gives the connection back when both have ended. All of this is polled by whoever holds
//! the exchange; dropped before its end, it closes the connection.

mod body;
mod connection;
mod upgrade;
mod upload;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::EXPECT;
use http::{Method, Request, Response, StatusCode};
use tokio::time::sleep;

pub(crate) use self::body::ResponseBody;
pub(super) use self::connection::Connection;
pub(super) use self::upgrade::is_upgrade;
use self::upload::{Upload, UploadFailure};
use super::pool::Slot;
use super::{Answer, Hold, SendError, SendOptions, dead_peer};
use crate::balance::Endpoint;
use crate::http::body::Body;
use crate::http::h1::decode::Decoder;
use crate::http::h1::encode::write_request;
use crate::http::h1::response::{ResponseHead, take_response};
use crate::http::server::Interim;
use crate::http::upgrade::{Tunnel, TunnelEnd};

/// How long a server that was asked for 100 may stay silent before the body is sent anyway (RFC 9110 section 10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);
/// What leaves in one TLS record. If the first write of a longer request fails, a part of it may have been taken.
const ONE_RECORD: usize = 16 * 1024;

/// Sends `request` on a connection of `slot`.
pub(super) async fn send(
    slot: Rc<Slot>,
    endpoint: &Endpoint,
    request: Request<Body>,
    options: SendOptions<'_>,
) -> Result<Answer, SendError> {
    let request = upgrade::to_http1(request);
    let connection = slot.http1(endpoint, options.cluster).await?;
    options.prove(connection.peer.as_ref());
    let mut exchange = Exchange::begin(connection, request);
    let head = match exchange.head(options.interim).await {
        Ok(head) => head,
        Err(Failed::Http2) => {
            slot.ability.refused();
            return Err(SendError::NotProcessed("the endpoint speaks only HTTP/2"));
        }
        Err(Failed::Otherwise(error)) => return Err(error),
    };
    let Exchange { connection, method, upgrade, upload, .. } = exchange;
    let ResponseHead { response, framing, keep_alive } = head;
    let tunnels = match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if !upgrade => {
            return Err(SendError::Protocol("101 to a request without Upgrade".into()));
        }
        StatusCode::SWITCHING_PROTOCOLS => true,
        status => method == Method::CONNECT && status.is_success(),
    };
    if tunnels {
        let Some(tunnel) = connection.into_tunnel() else {
            return Err(SendError::Reset("the connection is gone"));
        };
        let tunnel = Some(tunnel);
        return Ok(Answer { response: response.map(|()| Body::Empty), tunnel });
    }
    let body =
        ResponseBody::following(slot, connection, Decoder::new(framing), keep_alive, upload, &response);
    Ok(Answer { response: response.map(|()| body), tunnel: None })
}

/// Why there is no response's head.
#[derive(Debug)]
enum Failed {
    /// What came is the beginning of HTTP/2.
    Http2,
    Otherwise(SendError),
}

/// An exchange that waits for its response's head.
struct Exchange {
    connection: Box<Connection>,
    method: Method,
    /// The request asks for another protocol.
    upgrade: bool,
    /// `None` once the request was sent.
    upload: Option<Upload>,
    /// All that the connection had sent before.
    sent_before: u64,
    /// Nothing can be written any more.
    write_failed: bool,
}

impl Exchange {
    /// Queues the request's head.
    fn begin(mut connection: Box<Connection>, request: Request<Body>) -> Self {
        let sent_before = connection.transport.write.sent();
        let body = request.body();
        let length = if http_body::Body::is_end_stream(body) {
            Some(0)
        } else {
            http_body::Body::size_hint(body).exact()
        };
        let upgrade = is_upgrade(&request);
        let encoder = write_request(&mut connection.transport.write, &request, length);
        let (head, body) = request.into_parts();
        let upload =
            (length != Some(0)).then(|| Upload::new(body, encoder, head.headers.contains_key(EXPECT)));
        Self { connection, method: head.method, upgrade, upload, sent_before, write_failed: false }
    }

    /// Sends the request and waits for the response's head.
    async fn head(&mut self, interim: &Interim) -> Result<ResponseHead, Failed> {
        if self.upload.as_ref().is_none_or(|upload| !upload.holds()) {
            return poll_fn(|cx| self.poll_head(cx, interim)).await;
        }
        let mut patience = pin!(sleep(CONTINUE_TIMEOUT));
        poll_fn(|cx| {
            if let Some(upload) = &mut self.upload
                && upload.holds()
                && patience.as_mut().poll(cx).is_ready()
            {
                upload.go_on();
                // The client may wait for the same.
                interim.send(go_on());
            }
            self.poll_head(cx, interim)
        })
        .await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, interim: &Interim) -> Poll<Result<ResponseHead, Failed>> {
        loop {
            self.poll_send(cx).map_err(Failed::Otherwise)?;
            let Connection { transport, head_end, .. } = &mut *self.connection;
            match take_response(&mut transport.read, head_end, &self.method) {
                Ok(Some(head)) if is_interim(&head.response) => {
                    if head.response.status() == StatusCode::CONTINUE
                        && let Some(upload) = &mut self.upload
                    {
                        upload.go_on();
                    }
                    interim.send(head.response);
                    continue;
                }
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                _ if self.sent_before == 0 && is_settings(&transport.read) => {
                    return Poll::Ready(Err(Failed::Http2));
                }
                Ok(None) => {}
                Err(reason) => {
                    return Poll::Ready(Err(Failed::Otherwise(SendError::Protocol(reason.into()))));
                }
            }
            match transport.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Failed::Otherwise(self.lost()))),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Sends as much of the request as there is and as the peer takes. A peer that takes nothing more may still have
    /// answered, so that is no error here.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), SendError> {
        if self.write_failed {
            return Ok(());
        }
        let transport = &mut self.connection.transport;
        let result = match &mut self.upload {
            Some(upload) => upload.poll(cx, transport),
            None => transport.poll_flush(cx).map_err(|_| UploadFailure::Peer),
        };
        match result {
            Poll::Ready(Ok(())) => self.upload = None,
            Poll::Ready(Err(UploadFailure::Body(error))) => return Err(SendError::RequestBody(error)),
            Poll::Ready(Err(UploadFailure::Peer)) => self.write_failed = true,
            Poll::Pending => {}
        }
        Ok(())
    }

    /// What it means that the connection ended before the response's head.
    fn lost(&self) -> SendError {
        let transport = &self.connection.transport;
        let untouched = transport.write.sent() == self.sent_before && transport.write.len() <= ONE_RECORD;
        if self.write_failed && untouched {
            SendError::NotProcessed("the connection was closed before it took a byte of the request")
        } else if transport.read.is_empty() {
            SendError::Reset("the connection was closed before the response")
        } else {
            SendError::Reset("the connection was closed within the response's head")
        }
    }
}

/// Whether a new connection's peer begins with an HTTP/2 SETTINGS frame (RFC 9113 section 3.4): on stream 0, no ACK, and
/// of six bytes per setting. Only a server that waits for the preface of HTTP/2 says that, and it understands nothing
/// of what came in its place.
fn is_settings(read: &[u8]) -> bool {
    matches!(read, [0, high, low, 4, 0, 0, 0, 0, 0, ..] if u16::from_be_bytes([*high, *low]) % 6 == 0)
}

fn go_on() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::CONTINUE;
    response
}

fn is_interim(response: &Response<()>) -> bool {
    response.status().is_informational() && response.status() != StatusCode::SWITCHING_PROTOCOLS
}

impl Connection {
    /// The connection's bytes, from the end of the head on.
    fn into_tunnel(mut self: Box<Self>) -> Option<Tunnel> {
        let (stream, read) = self.transport.take()?;
        dead_peer::forget(stream.socket());
        Some(Tunnel::new(TunnelEnd::http1(stream, read), Hold::Opened(self.opened)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::Interest;

    use super::*;
    use crate::balance::Limit;
    use crate::upstream::HttpVersion;
    use crate::upstream::connect;
    use crate::upstream::open::Opened;
    use crate::upstream::testing::{Origin, Upstream, post};

    /// The one case in which a request on a lost connection is known not to have been processed.
    #[tokio::test]
    async fn a_connection_that_takes_no_byte_proves_that_nothing_was_processed() {
        let origin = Origin::new().await;
        let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
        let connection =
            connect::connect(&upstream.cluster, &upstream.endpoint, None, None).await.expect("a connection");
        let accepted = origin.accept().await;
        socket2::SockRef::from(&accepted.0).set_linger(Some(Duration::ZERO)).expect("open");
        drop(accepted);
        connection.stream.socket().ready(Interest::READABLE).await.expect("a reset");
        let permit = upstream.cluster.permit(Limit::Connections).expect("no limit");
        let opened = Opened::new(&Rc::default(), permit);
        let connection = Box::new(Connection::new(connection, opened));
        let result = Exchange::begin(connection, post("x")).head(&Interim::default()).await;
        assert!(matches!(result, Err(Failed::Otherwise(SendError::NotProcessed(_)))), "{result:?}");
    }
}
