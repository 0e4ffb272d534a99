//! Interim (1xx) responses, and what else a handler says before it answers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::{Response, StatusCode};

use super::h1::Exchange;
use super::h2::Stream;

/// Sends interim (1xx) responses before the final one. Cheap to clone; does nothing where the client can't take them.
#[derive(Clone, Default)]
pub(crate) struct Interim(Sink);

#[derive(Clone, Default)]
enum Sink {
    #[default]
    Nowhere,
    Http1(Rc<RefCell<Exchange>>, u64),
    Http2(Rc<Stream>),
}

impl Interim {
    /// To the client of exchange `number` of an HTTP/1.1 connection.
    pub(super) fn http1(exchange: Rc<RefCell<Exchange>>, number: u64) -> Self {
        Self(Sink::Http1(exchange, number))
    }

    /// To the client of an HTTP/2 stream.
    pub(super) fn http2(stream: Rc<Stream>) -> Self {
        Self(Sink::Http2(stream))
    }

    /// The stream may be without movement for so long, whatever its listener says; zero: however long.
    pub(crate) fn set_idle_timeout(&self, limit: Duration) {
        let limit = Some(limit).filter(|limit| !limit.is_zero());
        match &self.0 {
            Sink::Nowhere => {}
            Sink::Http1(exchange, number) => exchange.borrow_mut().set_idle_timeout(*number, limit),
            Sink::Http2(stream) => stream.set_idle_timeout(limit),
        }
    }

    /// Queues an interim response; it leaves before the handler is polled again. 101 is a final response here, and is
    /// ignored.
    pub(crate) fn send(&self, response: Response<()>) {
        if !response.status().is_informational() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        match &self.0 {
            Sink::Nowhere => {}
            Sink::Http1(exchange, number) => exchange.borrow_mut().interim(*number, &response),
            Sink::Http2(stream) => stream.interim(response),
        }
    }
}
