//! A body on its way into an HTTP/2 stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;

use crate::http::body::BodyError;

/// Sends a body frame by frame, as the peer's windows allow. Never holds more than the frame at hand. Dropped before its
/// end, it resets the stream.
pub(crate) struct SendBody {
    stream: SendStream<Bytes>,
    /// Given by the body, and not yet taken by the stream.
    pending: Bytes,
    /// `pending` is the last.
    last: bool,
    ended: bool,
    sent: u64,
}

/// Why a body was not sent whole.
#[derive(Debug)]
pub(crate) enum SendFailure {
    /// The body failed; the stream is to be reset accordingly.
    Body(BodyError),
    /// The peer reset the stream, or the connection is gone.
    Peer,
}

impl SendBody {
    /// Sends into a stream whose head was sent and which is not ended.
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, pending: Bytes::new(), last: false, ended: false, sent: 0 }
    }

    /// Sends what `body` has. Ready when all of it is with the `h2` crate, and from then on.
    pub(crate) fn poll<B>(
        &mut self,
        cx: &mut Context<'_>,
        mut body: Pin<&mut B>,
    ) -> Poll<Result<(), SendFailure>>
    where
        B: http_body::Body<Data = Bytes, Error = BodyError>,
    {
        while !self.ended {
            if !self.pending.is_empty() {
                ready!(self.poll_pending(cx))?;
                continue;
            }
            match body.as_mut().poll_frame(cx) {
                Poll::Pending => return self.poll_reset(cx),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.pending = data;
                        self.last = body.is_end_stream();
                        if self.pending.is_empty() && self.last {
                            self.end()?;
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.ended = true;
                            self.stream.send_trailers(trailers).map_err(|_| SendFailure::Peer)?;
                        }
                    }
                },
                Poll::Ready(None) => self.end()?,
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    return Poll::Ready(Err(SendFailure::Body(error)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes of the body are with the `h2` crate.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the body waits for the peer's window.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends the stream with a code.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.ended = true;
        self.stream.send_reset(reason);
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        self.stream.reserve_capacity(self.pending.len());
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Poll::Ready(Err(SendFailure::Peer)),
                None => return self.poll_reset(cx),
            }
        }
        let len = self.stream.capacity().min(self.pending.len());
        let data = self.pending.split_to(len);
        self.sent += len as u64;
        self.ended = self.last && self.pending.is_empty();
        self.stream.send_data(data, self.ended).map_err(|_| SendFailure::Peer)?;
        Poll::Ready(Ok(()))
    }

    fn end(&mut self) -> Result<(), SendFailure> {
        self.ended = true;
        self.stream.send_data(Bytes::new(), true).map_err(|_| SendFailure::Peer)
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        self.stream.poll_reset(cx).map(|_| Err(SendFailure::Peer))
    }
}
