//! The client end of a mesh connection.

use std::net::SocketAddr;
use std::time::SystemTime;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tulle_mesh::identity::SpiffeId;

use super::certificate::CertificateFacts;
use super::error::{HandshakeError, Reason, Rejection};
use super::failures::Side;
use super::material::{Alpn, Material};
use super::verify::identity;
use crate::balance::EndpointTls;

/// A connection whose server is known.
pub(crate) struct Connected<IO> {
    /// The bytes inside.
    pub(crate) stream: TlsStream<IO>,
    /// Whom the server proved to be.
    pub(crate) peer: SpiffeId,
    /// What was agreed on; `None`: bytes, or a server that does not negotiate.
    pub(crate) alpn: Option<Alpn>,
}

/// Makes a mesh connection to the endpoint at `address` over `io`. Not a byte of the application is sent before the
/// endpoint's identity is proved and is the one that is pinned. The caller limits its time. Each failure is logged here,
/// once.
///
/// # Errors
/// When the endpoint is not who it has to be, or does not speak mesh TLS. It is safe to try elsewhere.
pub(crate) async fn connect<IO>(
    io: IO,
    material: &Material,
    endpoint: &EndpointTls,
    alpn: Option<Alpn>,
    address: SocketAddr,
) -> Result<Connected<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let result = handshake(io, material, endpoint, alpn, address).await;
    result.inspect_err(|error| error.report(Side::Client, &material.failures))
}

async fn handshake<IO>(
    io: IO,
    material: &Material,
    endpoint: &EndpointTls,
    alpn: Option<Alpn>,
    address: SocketAddr,
) -> Result<Connected<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // A name that can't be an SNI (empty, under a foreign control plane) is left out of the ClientHello.
    let name = ServerName::try_from(endpoint.server_name.to_string())
        .unwrap_or_else(|_| ServerName::IpAddress(address.ip().into()));
    let stream = TlsConnector::from(material.client(alpn))
        .connect(name, io)
        .await
        .map_err(|e| HandshakeError::from_io(address, expected(endpoint, material), &e))?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or_else(|| Rejection {
        reason: Reason::NoCertificate,
        detail: "the peer presented no certificate".into(),
        presented: None,
        validity: None,
    });
    // Asked of what the session says, new or resumed, so that a resumed one is judged by today's clock and endpoint.
    let peer = leaf
        .and_then(CertificateFacts::read)
        .and_then(|facts| {
            let id = identity(&facts, &material.trust_domain, SystemTime::now())?;
            check_pin(&facts, endpoint, &id)?;
            Ok(id)
        })
        .map_err(|rejection| HandshakeError::new(address, expected(endpoint, material), rejection))?;
    let alpn = connection.alpn_protocol().and_then(Alpn::from_id);
    Ok(Connected { stream, peer, alpn })
}

fn check_pin(facts: &CertificateFacts, endpoint: &EndpointTls, id: &SpiffeId) -> Result<(), Rejection> {
    if let Some(pinned) = &endpoint.identity
        && pinned != id
    {
        let detail = format!(
            "the endpoint must be {pinned} and is {id}; its address may have been taken over by another"
        );
        return Err(facts.rejection(Reason::WrongIdentity, detail));
    }
    let names = &endpoint.subject_alt_names;
    if !names.is_empty() && !names.iter().any(|name| name.matches(id.as_str())) {
        let detail = format!("{id} is none of the identities that may answer for {}", endpoint.server_name);
        return Err(facts.rejection(Reason::WrongIdentity, detail));
    }
    Ok(())
}

fn expected(endpoint: &EndpointTls, material: &Material) -> String {
    match &endpoint.identity {
        Some(id) => id.to_string(),
        None if endpoint.subject_alt_names.is_empty() => format!("a workload of {}", material.trust_domain),
        None => {
            let names: Vec<String> = endpoint.subject_alt_names.iter().map(ToString::to_string).collect();
            format!("one that {}", names.join(" or "))
        }
    }
}
