//! The body of a request that came over HTTP/2.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::stream::Stream;
use crate::http::body::BodyError;
use crate::http::h2::recv::RecvBody;
use crate::http::server::Timer;

/// A request's body. Whoever waits for it waits no longer than the stream may be idle, in both directions together.
pub(crate) struct StreamBody {
    recv: RecvBody,
    stream: Rc<Stream>,
    /// Made when the body has to be waited for at all.
    timer: Option<Timer>,
    waiting: bool,
}

impl StreamBody {
    pub(super) fn new(recv: RecvBody, stream: Rc<Stream>) -> Self {
        Self { recv, stream, timer: None, waiting: false }
    }

    /// As [`http_body::Body::poll_frame`].
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.recv.poll_frame(cx);
        if polled.is_ready() || !self.waiting {
            self.stream.moved();
        }
        self.waiting = polled.is_pending();
        match (polled, self.stream.reading_timeout()) {
            (Poll::Pending, Some(idle)) => {
                let timer = self.timer.get_or_insert_with(|| Timer::new(idle));
                timer.poll(cx, self.stream.last_moved() + idle).map(|()| Some(Err(BodyError::Idle)))
            }
            (polled, _) => polled,
        }
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
