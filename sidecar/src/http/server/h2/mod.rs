//! An HTTP/2 connection.
//!
//! In: a stream that begins with the preface. Out: requests, all at once, and their answers. The connection and all of
//! its streams are one future: the frames are read and written and every handler is polled in the connection's own task.

mod body;
mod request;
mod stream;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout};

pub(crate) use self::body::StreamBody;
pub(super) use self::stream::Stream;
use self::stream::serve_stream;
use super::{Handler, ServerOptions, Timer};
use crate::http::h2::ping::{KeepAlive, Pace};
use crate::http::h2::{CONNECTION_WINDOW, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW};
use crate::worker::drain::{Drain, Phase};

/// Streams that a client may open and reset before they were looked at; more of them end the connection (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;

/// Serves a connection until either side closes it, or a drain does.
pub(crate) async fn serve<H: Handler>(
    stream: crate::io::Stream,
    handler: &H,
    options: &ServerOptions,
    drain: &Drain,
) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.http2.stream_window.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(options.http2.connection_window.unwrap_or(CONNECTION_WINDOW))
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(options.head.bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(options.http2.streams.unwrap_or(ServerOptions::MAX_CONCURRENT_STREAMS))
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .enable_connect_protocol();
    let handshake = builder.handshake::<_, Bytes>(stream);
    let Ok(Ok(mut connection)) = timeout(options.head_timeout, handshake).await else { return };
    let Some(ping_pong) = connection.ping_pong() else { return };
    let mut lifetime = Lifetime {
        keep_alive: KeepAlive::new(ping_pong, Pace::CALM),
        idle: options.idle_timeout.map(Timer::new),
        idle_since: Some(Instant::now()),
        options,
        leaving: false,
    };
    let mut lame = pin!(drain.reached(Phase::Lame));
    let mut closing = pin!(drain.reached(Phase::Closing));
    let mut streams = FuturesUnordered::new();
    let mut used = false;
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    used = true;
                    streams.push(serve_stream(handler, request, respond, options));
                    continue;
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            // What the streams say leaves with the next turn of the loop.
            if streams.is_empty() || !poll_streams(&mut streams, cx) {
                break;
            }
        }
        // A future that was ready is not polled again.
        let lame = drain.phase() >= Phase::Lame || lame.as_mut().poll(cx).is_ready();
        let closing = drain.phase() >= Phase::Closing || closing.as_mut().poll(cx).is_ready();
        // A connection that is made during a drain is still good for what made its client connect.
        let drained = closing || (lame && used);
        if !lifetime.leaving && (drained || lifetime.poll_idle(cx, streams.is_empty())) {
            lifetime.leaving = true;
            connection.graceful_shutdown();
            // The frame is written by the next poll, which this asks for.
            cx.waker().wake_by_ref();
        }
        // Clients bear pings at any time.
        lifetime.keep_alive.poll(cx, |_| true)
    })
    .await;
}

/// Polls the streams that were woken; `true` when one of them has ended, so that there is something to send.
fn poll_streams<F: Future<Output = ()>>(streams: &mut FuturesUnordered<F>, cx: &mut Context<'_>) -> bool {
    let mut ended = false;
    while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
        ended = true;
    }
    ended
}

/// When a connection ends by itself.
struct Lifetime<'a> {
    keep_alive: KeepAlive,
    /// Where there is a limit.
    idle: Option<Timer>,
    /// Since when there has been no stream.
    idle_since: Option<Instant>,
    options: &'a ServerOptions,
    /// GOAWAY is sent or about to be.
    leaving: bool,
}

impl Lifetime<'_> {
    /// Whether there has been no stream for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>, empty: bool) -> bool {
        if !empty {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        match (&mut self.idle, self.options.idle_timeout) {
            (Some(timer), Some(limit)) => timer.poll(cx, since + limit).is_ready(),
            _ => false,
        }
    }
}
