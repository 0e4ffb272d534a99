//! Mesh TLS: the two ends of a connection between sidecars.
//!
//! In: this workload's leaf and key, the trust bundle, and a connection's bytes. Out: an encrypted stream whose other
//! end has proved a SPIFFE ID. Rules (SPIFFE X509-SVID, sections 2 to 5): the peer's leaf chains to the bundle, is valid
//! now, is no CA, and has exactly one URI in its subject alternative name, which is a SPIFFE ID of our trust domain.
//! Host names in certificates mean nothing here. TLS 1.3 only; a session is resumed only under the very [`Material`]
//! that it began with, and its identity is checked like a new one's.
//!
//! This module never gives a stream to its caller before the peer is known, and never logs a key.

mod accept;
mod certificate;
mod client;
mod connect;
mod control_plane;
mod error;
mod failures;
mod issue;
mod material;
mod names;
mod rotate;
mod unverified;
mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use accept::accept;
pub(crate) use certificate::{CertificateFacts, Leaf, TrustBundle, stamp};
pub(crate) use client::{ClientTls, escaped_pem};
pub(crate) use connect::connect;
pub(crate) use control_plane::{ControlPlane, ControlPlaneError, Proof};
pub(crate) use error::{HandshakeError, Reason, with_causes};
#[cfg(test)]
pub(crate) use issue::{CertificateRequest, CertificateResponse};
pub(crate) use material::{Alpn, Material};
pub(crate) use names::Names;
pub(crate) use rotate::{FILE_CHECK, RenewError, Rotation, keep_issued, keep_read, read, renew_once};
pub(crate) use unverified::unverified_client;
