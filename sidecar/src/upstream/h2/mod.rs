//! One request and its response on an HTTP/2 connection.
//!
//! In: a request. Out: its response. Request and response are streamed by whoever holds the exchange, both at once: the
//! response's body sends what is left of the request. The connection itself is driven by one task, which ends with it;
//! there is none per request.

mod body;
mod connection;
mod first;
mod request;
mod upgrade;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Request, Response};

pub(crate) use self::body::ResponseBody;
use self::body::Upload;
pub(super) use self::connection::{Lease, Multiplexed};
use self::upgrade::Upgrade;
use super::pool::Slot;
use super::{Answer, Hold, SendError};
use crate::balance::{Cluster, Endpoint};
use crate::http::body::{Body, BodyError};
use crate::http::h2::body_error;
use crate::http::h2::send::SendFailure;
use crate::http::server::Interim;
use crate::http::upgrade::{Tunnel, TunnelEnd};

/// Connections that turn out to be closing before a request is given up.
const MAX_TRIES: usize = 3;

/// A place on a connection that takes a stream now, and what opens it.
pub(super) type Place = (Lease, SendRequest<Bytes>);

/// Sends `request` in its place. `upgrade`: it is one.
pub(super) async fn send(
    (lease, mut sender): Place,
    mut request: Request<Body>,
    upgrade: bool,
    interim: &Interim,
) -> Result<Answer, SendError> {
    let upgrade = match upgrade {
        true => Some(Upgrade::begin(&mut request, sender.is_extended_connect_protocol_enabled())?),
        false => None,
    };
    let (head, body) = request::to_http2(request)?.into_parts();
    let connect = head.method == Method::CONNECT;
    let ended = !connect && http_body::Body::is_end_stream(&body);
    let head = Request::from_parts(head, ());
    let (response, stream) = sender.send_request(head, ended).map_err(|error| not_opened(&error))?;
    let mut tunnel = None;
    let mut upload = None;
    if connect {
        tunnel = Some(stream);
    } else if !ended {
        upload = Some(Upload::new(stream, body));
    }
    let mut exchange = Exchange { response, upload };
    let response = exchange.head(interim).await?;
    lease.heard();
    let (head, recv) = response.into_parts();
    match tunnel {
        Some(stream) if head.status.is_success() => {
            let mut response = Response::from_parts(head, ());
            if let Some(upgrade) = upgrade {
                upgrade.end(&mut response);
            }
            let tunnel = Some(Tunnel::new(TunnelEnd::http2(stream, recv), Hold::Stream(lease)));
            Ok(Answer { response: response.map(|()| Body::Empty), tunnel })
        }
        _ => {
            let body = ResponseBody::following(recv, &head.headers, exchange.upload, lease);
            Ok(Answer { response: Response::from_parts(head, body), tunnel: None })
        }
    }
}

/// A place on a connection of `slot`, made if need be. Nothing of a request is needed for it, or lost if there is none.
pub(super) async fn ready(slot: &Slot, endpoint: &Endpoint, cluster: &Cluster) -> Result<Place, SendError> {
    for _ in 0..MAX_TRIES {
        let lease = connection::lease(slot, endpoint, cluster).await?;
        let mut sender = lease.sender();
        match poll_fn(|cx| sender.poll_ready(cx)).await {
            Ok(()) => return Ok((lease, sender)),
            // The peer goes away or has gone; nothing was sent.
            Err(_) => lease.close(),
        }
    }
    Err(SendError::NotProcessed("the endpoint closes its connections before they can be used"))
}

/// A request that could not even be queued.
fn not_opened(error: &h2::Error) -> SendError {
    if error.is_io() || error.is_go_away() || error.is_reset() || error.is_remote() {
        SendError::NotProcessed("the connection ended before the request was sent")
    } else {
        SendError::Protocol(error.to_string())
    }
}

/// An exchange that waits for its response's head.
struct Exchange {
    response: ResponseFuture,
    /// `None` once the request was sent.
    upload: Option<Upload>,
}

impl Exchange {
    /// Sends the request and waits for the response's head.
    async fn head(&mut self, interim: &Interim) -> Result<Response<RecvStream>, SendError> {
        poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(response))) = self.response.poll_informational(cx) {
                interim.send(response);
            }
            if let Poll::Ready(response) = Pin::new(&mut self.response).poll(cx) {
                return Poll::Ready(response.map_err(|error| failure(&error)));
            }
            if let Some(upload) = &mut self.upload {
                match upload.poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Err(SendFailure::Body(error))) => {
                        return Poll::Ready(Err(SendError::RequestBody(error)));
                    }
                    // If the peer wants no more, the response says why.
                    Poll::Ready(Ok(()) | Err(SendFailure::Peer)) => self.upload = None,
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// What it means that a stream ended before its response's head.
fn failure(error: &h2::Error) -> SendError {
    if error.is_go_away() && error.is_remote() {
        // Streams up to the last one that the peer names go on; this one is above it (RFC 9113 section 6.8).
        return SendError::NotProcessed("the endpoint goes away and has not taken the request");
    }
    match body_error(error) {
        BodyError::Reset(code) if error.is_remote() => match h2::Reason::from(code) {
            h2::Reason::REFUSED_STREAM => SendError::NotProcessed("the endpoint refused the stream"),
            h2::Reason::PROTOCOL_ERROR => {
                SendError::Protocol(reset_by_peer(h2::Reason::PROTOCOL_ERROR).into())
            }
            reason => SendError::Reset(reset_by_peer(reason)),
        },
        BodyError::Reset(_) => SendError::Protocol(error.to_string()),
        _ => SendError::Reset("the connection was closed before the response"),
    }
}

/// What a stream was reset with.
fn reset_by_peer(reason: h2::Reason) -> &'static str {
    match reason {
        h2::Reason::NO_ERROR => "the endpoint reset the stream (NO_ERROR)",
        h2::Reason::PROTOCOL_ERROR => "the endpoint reset the stream (PROTOCOL_ERROR)",
        h2::Reason::INTERNAL_ERROR => "the endpoint reset the stream (INTERNAL_ERROR)",
        h2::Reason::CANCEL => "the endpoint reset the stream (CANCEL)",
        h2::Reason::ENHANCE_YOUR_CALM => "the endpoint reset the stream (ENHANCE_YOUR_CALM)",
        h2::Reason::HTTP_1_1_REQUIRED => "the endpoint reset the stream (HTTP_1_1_REQUIRED)",
        _ => "the endpoint reset the stream",
    }
}
