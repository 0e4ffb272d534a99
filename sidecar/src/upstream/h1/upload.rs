//! A request's body on its way to the endpoint.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::HeaderMap;

use crate::http::body::{Body, BodyError};
use crate::http::h1::encode::Encoder;
use crate::http::h1::transport::{Transport, WRITE_HIGH_WATER};

/// What is left of a request.
pub(super) struct Upload {
    body: Body,
    encoder: Encoder,
    /// The server has to say 100 first.
    holds: bool,
    ended: bool,
}

/// Why a request was not sent whole.
pub(super) enum UploadFailure {
    /// Its body failed, or was not as long as announced.
    Body(BodyError),
    /// The peer takes nothing more.
    Peer,
}

impl Upload {
    /// The body that follows a head.
    pub(super) fn new(body: Body, encoder: Encoder, holds: bool) -> Self {
        Self { body, encoder, holds, ended: false }
    }

    /// Whether the server has to say 100 first.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// It need not any more.
    pub(super) fn go_on(&mut self) {
        self.holds = false;
    }

    /// Sends as much as there is and as the peer takes. Ready when all was sent.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut Transport,
    ) -> Poll<Result<(), UploadFailure>> {
        loop {
            let mut starved = self.holds;
            while !self.holds && !self.ended && transport.write.len() < WRITE_HIGH_WATER {
                match self.poll_frame(cx, transport)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        starved = true;
                        break;
                    }
                }
            }
            ready!(transport.poll_flush(cx)).map_err(|_| UploadFailure::Peer)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if starved {
                return Poll::Pending;
            }
        }
    }

    /// Moves one frame of the body into the buffer.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut Transport,
    ) -> Result<Poll<()>, UploadFailure> {
        let frame = match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(None) => return self.end(transport, None).map(Poll::Ready),
            Poll::Ready(Some(Err(error))) => return Err(UploadFailure::Body(error)),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                self.encoder.data(&mut transport.write, data).map_err(|_| mismatch())?;
                if http_body::Body::is_end_stream(&self.body) {
                    self.end(transport, None)?;
                }
            }
            Err(frame) => self.end(transport, frame.into_trailers().ok())?,
        }
        Ok(Poll::Ready(()))
    }

    fn end(&mut self, transport: &mut Transport, trailers: Option<HeaderMap>) -> Result<(), UploadFailure> {
        self.ended = true;
        self.encoder.end(&mut transport.write, trailers.as_ref()).map_err(|_| mismatch())
    }
}

fn mismatch() -> UploadFailure {
    UploadFailure::Body(BodyError::Protocol("a body that is not as long as its Content-Length"))
}
