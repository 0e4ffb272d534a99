//! CSDS on the admin port: what the sidecar has of its control plane, for any client of Envoy's protocol.
//!
//! In: connections that begin HTTP/2, and gRPC calls on them. Out: one answer for each request message. It stands on the
//! HTTP/2 that traffic is served with, so that no second server is part of the program. No web page can speak it.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};

use super::Admin;
use crate::error::{GRPC_UNAVAILABLE, GRPC_UNIMPLEMENTED};

const FETCH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
const STREAM: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus";

/// The beginning of HTTP/2, as far as no request of HTTP/1 begins so.
const PREFACE: &[u8] = b"PRI";
/// The longest request, which says nothing more than that it asks.
const MAX_REQUEST: usize = 64 * 1024;

const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;

/// Whether a connection begins HTTP/2. Nothing of it is read.
pub(super) async fn is_http2(socket: &TcpStream) -> bool {
    let mut first = [0; 3];
    loop {
        match socket.peek(&mut first).await {
            Ok(read) if read > 0 && read < PREFACE.len() && PREFACE.starts_with(&first[..read]) => {
                // The rest is on its way; the system does not tell when more of what is not read has come.
                sleep(Duration::from_millis(5)).await;
            }
            Ok(read) => return read == PREFACE.len() && first == *PREFACE,
            Err(_) => return false,
        }
    }
}

/// Answers the calls of a connection until it ends.
///
/// # Errors
/// When the connection breaks.
pub(super) async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    admin: Arc<Admin>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(8)
        .max_header_list_size(16 * 1024)
        .handshake::<_, Bytes>(socket)
        .await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            if let Err(error) = answer(request, respond, &admin).await {
                tracing::debug!(%error, "a call to the admin port broke");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    admin: &Admin,
) -> Result<(), h2::Error> {
    let only_one = request.uri().path() == FETCH;
    if !only_one && request.uri().path() != STREAM {
        respond.send_response(
            head(Some((GRPC_UNIMPLEMENTED, "only ClientStatusDiscoveryService is served"))),
            true,
        )?;
        return Ok(());
    }
    let mut send = respond.send_response(head(None), false)?;
    let mut body = request.into_body();
    let mut read = BytesMut::new();
    let (status, message) = loop {
        while let Some(request) = take_message(&mut read) {
            match reply(request, admin).await {
                Ok(reply) => send.send_data(framed(&reply), false)?,
                Err(problem) => return send.send_trailers(trailers(problem)),
            }
            if only_one {
                return send.send_trailers(trailers((OK, "")));
            }
        }
        if read.len() > MAX_REQUEST {
            break (INVALID_ARGUMENT, "the request is too long");
        }
        match body.data().await {
            Some(data) => {
                let data = data?;
                // Fails only for more than was received.
                let _ = body.flow_control().release_capacity(data.len());
                read.extend_from_slice(&data);
            }
            None if only_one => break (INVALID_ARGUMENT, "there is no request"),
            None => break (OK, ""),
        }
    };
    send.send_trailers(trailers((status, message)))
}

async fn reply(request: Bytes, admin: &Admin) -> Result<ClientStatusResponse, (u32, &'static str)> {
    let request = ClientStatusRequest::decode(request)
        .map_err(|_| (INVALID_ARGUMENT, "this is no ClientStatusRequest"))?;
    if !request.node_matchers.is_empty() {
        return Err((INVALID_ARGUMENT, "there is one node here: leave out node_matchers"));
    }
    let config =
        admin.handle.client_config().await.ok_or((GRPC_UNAVAILABLE, "the sidecar is about to end"))?;
    Ok(ClientStatusResponse { config: vec![config] })
}

/// The next whole message; `None` where more must come.
fn take_message(read: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(read.get(1..5)?.try_into().ok()?) as usize;
    if read.len() < 5 + length {
        return None;
    }
    read.advance(5);
    Some(read.split_to(length).freeze())
}

fn framed(reply: &ClientStatusResponse) -> Bytes {
    let length = reply.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    // What is held was received in messages of a few MiB.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&reply.encode_to_vec());
    bytes.freeze()
}

fn head(status: Option<(u32, &str)>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().extend(status.map(trailers).unwrap_or_default());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn trailers((status, message): (u32, &str)) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(status));
    if let Ok(message) = HeaderValue::from_str(message)
        && status != OK
    {
        trailers.insert(HeaderName::from_static("grpc-message"), message);
    }
    trailers
}
