//! A response's body, and the connection that it comes over.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};

use super::connection::Connection;
use super::upload::{Upload, UploadFailure};
use crate::http::body::{Body, BodyError};
use crate::http::h1::decode::{Decoded, Decoder};
use crate::upstream::pool::Slot;

/// The body of a response. While it is read, what is left of the request is sent. At its end the connection goes back to
/// its slot; dropped before, it closes it.
pub(crate) struct ResponseBody {
    slot: Rc<Slot>,
    /// `None` once it was given back or is of no more use.
    connection: Option<Box<Connection>>,
    decoder: Decoder,
    keep_alive: bool,
    /// Boxed: an answer before the end of the request is rare, and this is moved often.
    upload: Option<Box<Upload>>,
}

impl ResponseBody {
    /// The body that follows `head`: none at all where the decoder says so, and then the connection is free at once.
    pub(super) fn following(
        slot: Rc<Slot>,
        mut connection: Box<Connection>,
        decoder: Decoder,
        keep_alive: bool,
        upload: Option<Upload>,
        head: &Response<()>,
    ) -> Body {
        connection.heed(head.headers());
        let mut body =
            Self { slot, connection: Some(connection), decoder, keep_alive, upload: upload.map(Box::new) };
        body.finish();
        if body.decoder.is_done() { Body::Empty } else { Body::Http1Response(body) }
    }

    /// As [`http_body::Body::poll_frame`].
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Err(error) = self.poll_upload(cx) {
            return self.fail(error);
        }
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        let frame = loop {
            match self.decoder.decode(&mut connection.transport.read) {
                Ok(Decoded::Data(data)) => break Some(Ok(Frame::data(data))),
                Ok(Decoded::Trailers(trailers)) => break Some(Ok(Frame::trailers(trailers))),
                Ok(Decoded::End) => break None,
                Ok(Decoded::More) => {}
                Err(reason) => return self.fail(BodyError::Protocol(reason)),
            }
            match connection.transport.poll_fill(cx) {
                Poll::Ready(Ok(0)) if matches!(self.decoder, Decoder::UntilClose) => {
                    self.decoder = Decoder::Done;
                    break None;
                }
                Poll::Ready(Ok(0) | Err(_)) => return self.fail(BodyError::Truncated),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        };
        self.finish();
        Poll::Ready(frame)
    }

    /// As [`http_body::Body::is_end_stream`].
    pub(crate) fn is_end_stream(&self) -> bool {
        self.decoder.is_done()
    }

    /// As [`http_body::Body::size_hint`].
    pub(crate) fn size_hint(&self) -> SizeHint {
        self.decoder.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let (Some(upload), Some(connection)) = (&mut self.upload, &mut self.connection) else {
            return Ok(());
        };
        match upload.poll(cx, &mut connection.transport) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.upload = None,
            Poll::Ready(Err(UploadFailure::Body(error))) => return Err(error),
            Poll::Ready(Err(UploadFailure::Peer)) => {
                self.keep_alive = false;
                self.upload = None;
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.connection = None;
        self.upload = None;
        self.decoder = Decoder::Done;
        Poll::Ready(Some(Err(error)))
    }

    /// At the end of the response, gives the connection back if it can be used again.
    fn finish(&mut self) {
        if !self.decoder.is_done() {
            return;
        }
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.upload.is_none()
            && connection.transport.read.is_empty()
            && connection.transport.write.is_empty()
        {
            self.slot.put(connection);
        }
        self.upload = None;
    }
}
