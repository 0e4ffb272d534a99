//! The server end of a mesh connection.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::DownstreamTls;

use super::certificate::CertificateFacts;
use super::error::{HandshakeError, Reason, Rejection};
use super::failures::Side;
use super::material::{Alpn, Material};
use super::verify::identity;

/// A connection whose client is known.
pub(crate) struct Accepted<IO> {
    /// The bytes inside.
    pub(crate) stream: TlsStream<IO>,
    /// Whom the client proved to be; `None` only where no certificate is required.
    pub(crate) peer: Option<SpiffeId>,
    /// What is inside; `None`: bytes.
    pub(crate) alpn: Option<Alpn>,
}

/// Takes the handshake of a client. The caller limits its time. Each failure is counted and logged here, once.
///
/// # Errors
/// When the client does not prove to be a workload of the mesh, or does not speak mesh TLS.
pub(crate) async fn accept<IO>(
    io: IO,
    material: &Material,
    tls: &DownstreamTls,
    address: SocketAddr,
) -> Result<Accepted<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let result = handshake(io, material, tls, address).await;
    result.inspect_err(|error| error.report(Side::Server, &material.failures))
}

async fn handshake<IO>(
    io: IO,
    material: &Material,
    tls: &DownstreamTls,
    address: SocketAddr,
) -> Result<Accepted<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let expected = || format!("a workload of {}", material.trust_domain);
    let stream = TlsAcceptor::from(material.server(tls))
        .accept(io)
        .await
        .map_err(|e| HandshakeError::from_io(address, expected(), &e))?;
    let (_, connection) = stream.get_ref();
    // Asked of what the session says, new or resumed, so that a resumed one is judged by today's clock.
    let peer = match connection.peer_certificates().and_then(<[_]>::first) {
        Some(leaf) => CertificateFacts::read(leaf)
            .and_then(|facts| identity(&facts, &material.trust_domain, SystemTime::now()))
            .map(Some),
        None if tls.require_client_certificate => Err(Rejection {
            reason: Reason::NoCertificate,
            detail: "the peer presented no certificate, and one is required".into(),
            presented: None,
            validity: None,
        }),
        None => Ok(None),
    };
    let peer = peer.map_err(|rejection| HandshakeError::new(address, expected(), rejection))?;
    let alpn = connection.alpn_protocol().and_then(Alpn::from_id);
    Ok(Accepted { stream, peer, alpn })
}
