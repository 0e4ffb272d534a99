//! Who is calling: an identity that was proven, by a certificate of the mesh, by a join token, or by the
//! token of a service account.
//!
//! Everything that the control plane says depends on this and on nothing that the caller merely claims, such as the
//! node id in an xDS request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};
use tulle_mesh::identity::SpiffeId;

use crate::ca::{Authority, tokens};

/// A caller whose identity was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is; in the mesh's own trust domain.
    pub identity: SpiffeId,
    /// By what it proved that.
    pub proof: Proof,
}

impl Caller {
    /// The namespace that its short names and its own routes are looked up in; empty where its identity has none.
    pub fn namespace(&self) -> &str {
        self.identity.namespace().unwrap_or_default()
    }
}

/// By what a caller proved its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of the mesh.
    Certificate(PeerCertificate),
    /// A join token, or a service account's.
    Token {
        /// Until when it is valid.
        expires: SystemTime,
    },
}

/// The far end of a TLS connection. Requests carry it in their extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate that it presented, verified against the trust bundle when the connection was made.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What is kept of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Since when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The id of the root that signed it.
    pub root: Option<String>,
}

/// Finds out who sent a request. A certificate counts before a token.
///
/// # Errors
/// `UNAUTHENTICATED` when there is no proof, or none that holds; it says why and never what the token was. `UNAVAILABLE`
/// when nobody can tell now.
pub async fn authenticate(
    metadata: &MetadataMap,
    extensions: &Extensions,
    authority: &Authority,
    now: SystemTime,
) -> Result<Caller, Status> {
    if let Some(certificate) = extensions.get::<Peer>().and_then(|peer| peer.certificate.as_deref()) {
        // The handshake checked it, but a connection can outlive it.
        if certificate.not_after <= now {
            return Err(Status::unauthenticated(format!(
                "the client certificate of {} expired while the connection was open; connect again with a new one, \
                 or with a join token",
                certificate.identity
            )));
        }
        return Ok(Caller {
            identity: certificate.identity.clone(),
            proof: Proof::Certificate(certificate.clone()),
        });
    }
    let Some(header) = metadata.get("authorization") else {
        return Err(Status::unauthenticated(
            "no proof of identity: present a client certificate of the mesh, or a join token as \
             `authorization: Bearer <token>`",
        ));
    };
    let token = header.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let Some(token) = token else {
        return Err(Status::unauthenticated("the authorization header is not of the form `Bearer <token>`"));
    };
    let proven = match authority.reviewer() {
        Some(reviewer) if !tokens::claims_to_join(token) => {
            reviewer.prove(token, authority.trust_domain()).await.map_err(|error| error.status())?
        }
        _ => authority
            .token_key()
            .verify(token, authority.trust_domain(), now)
            .map_err(|error| Status::unauthenticated(error.to_string()))?,
    };
    Ok(Caller { identity: proven.identity, proof: Proof::Token { expires: proven.expires } })
}
