//! A response's body, and what is left of the request while it comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::connection::Lease;
use crate::http::body::{Body, BodyError};
use crate::http::h2::recv::RecvBody;
use crate::http::h2::reset_reason;
use crate::http::h2::send::{SendBody, SendFailure};

/// The body of a response. While it is read, what is left of the request is sent. Dropped before its end, it resets the
/// stream.
pub(crate) struct ResponseBody {
    recv: RecvBody,
    /// Boxed: most requests have ended by now, and this is moved often.
    upload: Option<Box<Upload>>,
    /// Keeps the stream's place on its connection.
    lease: Lease,
}

impl ResponseBody {
    /// The body that follows a head with these fields.
    pub(super) fn following(
        recv: RecvStream,
        headers: &HeaderMap,
        upload: Option<Upload>,
        lease: Lease,
    ) -> Body {
        if recv.is_end_stream() {
            return Body::Empty;
        }
        let recv = RecvBody::new(recv, headers);
        Body::Http2Response(Self { recv, upload: upload.map(Box::new), lease })
    }

    /// As [`http_body::Body::poll_frame`].
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(upload) = &mut self.upload {
            match upload.poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(SendFailure::Body(error))) => {
                    self.upload = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Ok(()) | Err(SendFailure::Peer)) => self.upload = None,
            }
        }
        let frame = self.recv.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = frame {
            self.lease.heard();
        }
        frame
    }

    /// As [`http_body::Body::is_end_stream`].
    pub(crate) fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    /// As [`http_body::Body::size_hint`].
    pub(crate) fn size_hint(&self) -> SizeHint {
        self.recv.size_hint()
    }
}

/// What is left of a request.
pub(super) struct Upload {
    send: SendBody,
    body: Body,
}

impl Upload {
    /// The body that follows a head on `stream`.
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Self {
        Self { send: SendBody::new(stream), body }
    }

    /// As [`SendBody::poll`]; a stream whose body failed is reset.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        let polled = self.send.poll(cx, Pin::new(&mut self.body));
        if let Poll::Ready(Err(SendFailure::Body(error))) = &polled {
            self.send.reset(reset_reason(error));
        }
        polled
    }
}
