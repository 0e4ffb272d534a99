//! One request of an HTTP/2 connection.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::{Method, Request, Response, StatusCode, Version};

use super::request::check;
use crate::http::body::Body;
use crate::http::h1::framing::status_is_bodiless;
use crate::http::h2::recv::RecvBody;
use crate::http::h2::send::SendBody;
use crate::http::h2::strip_connection_fields;
use crate::http::server::{Handler, Interim, Reply, ServerOptions};
use crate::http::upgrade::TunnelEnd;

/// Answers a request. Returns early when the client resets the stream.
pub(super) async fn serve_stream<H: Handler>(
    handler: &H,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    options: &ServerOptions,
) {
    let (head, recv) = request.into_parts();
    let method = head.method.clone();
    let respond = Rc::new(RefCell::new(respond));
    if let Err(refusal) = check(&head, options.head.fields) {
        return send_head(&respond, refusal.response(), true, |_| ());
    }
    // A CONNECT has no body: what follows is the tunnel's.
    let (body, tunnel_recv) = if method == Method::CONNECT {
        (Body::Empty, Some(recv))
    } else if recv.is_end_stream() {
        (Body::Empty, None)
    } else {
        (Body::Http2Request(RecvBody::new(recv, &head.headers)), None)
    };
    let request = Request::from_parts(head, body);
    let Some(reply) = handle(handler, request, &respond).await else { return };
    let Reply { response, tunnel, .. } = reply;
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_2;
    strip_connection_fields(&mut head.headers);

    if let (Some(tunnel), Some(recv)) = (tunnel, tunnel_recv) {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // What opens a tunnel in HTTP/2 (RFC 8441 section 5).
            head.status = StatusCode::OK;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
        }
        let sent = send_head(&respond, Response::from_parts(head, ()), false, Some);
        if let Some(send) = sent {
            tunnel.run(TunnelEnd::http2(send, recv), options.stream_idle_timeout).await;
        }
        drop(body);
        return;
    }

    let bodiless = method == Method::HEAD || status_is_bodiless(head.status);
    let ended = bodiless || http_body::Body::is_end_stream(&body);
    if !ended
        && !head.headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = http_body::Body::size_hint(&body).exact()
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let sent = send_head(&respond, Response::from_parts(head, ()), ended, Some);
    if let (Some(send), false) = (sent, ended) {
        let mut send = SendBody::new(send);
        let mut body = pin!(body);
        // Whichever way it ends, the stream is ended or reset by then.
        let _ = poll_fn(|cx| send.poll(cx, body.as_mut())).await;
    }
}

/// Runs the handler; `None` when the client has reset the stream.
async fn handle<H: Handler>(
    handler: &H,
    request: Request<Body>,
    respond: &Rc<RefCell<SendResponse<Bytes>>>,
) -> Option<Reply<H::Body>> {
    let mut handling = pin!(handler.handle(request, Interim::http2(Rc::clone(respond))));
    poll_fn(|cx| {
        if respond.borrow_mut().poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        handling.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Sends a head, and gives the stream for what follows to `then`.
fn send_head<T: Default>(
    respond: &RefCell<SendResponse<Bytes>>,
    response: Response<()>,
    end: bool,
    then: impl FnOnce(h2::SendStream<Bytes>) -> T,
) -> T {
    match respond.borrow_mut().send_response(response, end) {
        Ok(stream) => then(stream),
        // The stream is gone.
        Err(_) => T::default(),
    }
}
