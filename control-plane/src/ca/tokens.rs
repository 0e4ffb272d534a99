//! Join tokens: how a workload without a certificate proves who it is.
//!
//! A token is a JWT, signed with ES256 by a key of the state folder, for one service account, until it expires. It may
//! be used again until then, because a workload that was away for longer than its certificate lives must be able to
//! come back; so give it the life of the workload's deployment, no more. No error, log or `Debug` output holds a token.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use tulle_mesh::identity::{SpiffeId, TrustDomain};

use super::store::Store;
use super::{CaError, rotation};

/// The `iss` of every join token.
pub const ISSUER: &str = "tulle";

/// The `aud` of every token that is for a control plane: join tokens, and those that the kubelet asks for.
pub const AUDIENCE: &str = "tulle-control-plane";

/// The longest token that is looked at, in bytes.
pub(super) const MAX_TOKEN: usize = 8 * 1024;

/// Makes a token with the key of a state folder, for a service account in the folder's trust domain. This is what
/// `tulle token --state DIR` prints.
///
/// # Errors
/// When the folder holds no CA, its key can be read by others, or a name can't be part of an identity.
pub fn mint(
    state: &Path,
    namespace: &str,
    service_account: &str,
    ttl: Duration,
    now: SystemTime,
) -> Result<String, MintError> {
    let store = Store::existing(state).map_err(MintError::State)?;
    let root = rotation::signing(&store).map_err(MintError::State)?;
    let trust_domain = rotation::trust_domain(&store, &root).map_err(MintError::State)?;
    let identity = SpiffeId::workload(&trust_domain, namespace, service_account)
        .map_err(|e| MintError::Identity(e.to_string()))?;
    let key = TokenKey::load(&store).map_err(MintError::State)?;
    key.mint(&identity, ttl, now).map_err(MintError::Signing)
}

/// Whether a token says of itself that it is a join token. Nothing of it is proven yet: this only tells who can.
pub(crate) fn claims_to_join(token: &str) -> bool {
    claims::<Issued>(token).is_some_and(|said| said.iss == ISSUER)
}

/// What a JWT says, without any proof.
pub(super) fn claims<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
    let payload = token.split('.').nth(1).filter(|_| token.len() <= MAX_TOKEN)?;
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Who made a token.
#[derive(Deserialize)]
struct Issued {
    iss: String,
}

/// Signs join tokens, and checks them.
pub struct TokenKey {
    sign: EncodingKey,
    verify: DecodingKey,
}

/// What a new token says.
#[derive(Serialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The SPIFFE ID.
    sub: String,
    /// Seconds since 1970.
    iat: u64,
    /// Seconds since 1970.
    exp: u64,
    /// Unique, so that two tokens are never the same.
    jti: String,
}

/// What is read of a token, beside what its validation reads.
#[derive(Deserialize)]
struct Said {
    sub: String,
    exp: u64,
}

/// What a valid token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who the caller is.
    pub identity: SpiffeId,
    /// Until when the token may be used.
    pub expires: SystemTime,
}

impl TokenKey {
    /// Makes a token for an identity.
    ///
    /// # Errors
    /// When the key can't sign.
    pub fn mint(&self, identity: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<String, String> {
        let now = seconds(now);
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: identity.as_str().into(),
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
            jti: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.sign).map_err(|e| e.to_string())
    }

    /// Checks a token that a caller sent.
    ///
    /// # Errors
    /// Says which check failed, never what the token is.
    pub fn verify(
        &self,
        token: &str,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Proven, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let mut checks = Validation::new(Algorithm::ES256);
        checks.set_audience(&[AUDIENCE]);
        checks.set_issuer(&[ISSUER]);
        checks.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Checked below against `now`, to say when it expired.
        checks.validate_exp = false;
        let claims = jsonwebtoken::decode::<Said>(token, &self.verify, &checks)
            .map_err(|e| match e.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::InvalidAlgorithm | ErrorKind::MissingAlgorithm => TokenError::Algorithm,
                ErrorKind::InvalidAudience => TokenError::Audience,
                ErrorKind::InvalidIssuer => TokenError::Issuer,
                ErrorKind::MissingRequiredClaim(claim) => TokenError::Missing(claim.clone()),
                _ => TokenError::Malformed,
            })?
            .claims;
        let expires = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(claims.exp))
            .ok_or(TokenError::Malformed)?;
        if expires <= now {
            return Err(TokenError::Expired { at: expires, now });
        }
        let identity: SpiffeId = claims.sub.parse().map_err(|_| TokenError::Malformed)?;
        if identity.trust_domain() != trust_domain.as_str() {
            let found = identity.trust_domain().into();
            return Err(TokenError::TrustDomain { found, ours: trust_domain.clone() });
        }
        if identity.service_account().is_none() {
            return Err(TokenError::Malformed);
        }
        Ok(Proven { identity, expires })
    }

    pub(super) fn load_or_make(store: &Store) -> Result<Self, CaError> {
        if store.token_key()?.is_none() {
            let key = KeyPair::generate().map_err(|e| CaError::Crypto { reason: e.to_string() })?;
            store.set_token_key(&key.serialize_pem())?;
        }
        Self::load(store)
    }

    fn load(store: &Store) -> Result<Self, CaError> {
        let pem = store.token_key()?.ok_or_else(|| CaError::Empty { dir: store.dir().into() })?;
        let damaged = |reason: String| CaError::Damaged { path: store.token_key_path(), reason };
        let key = KeyPair::from_pem(&pem).map_err(|e| damaged(e.to_string()))?;
        Ok(Self {
            sign: EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?,
            verify: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())
                .map_err(|e| damaged(e.to_string()))?,
        })
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Why no token was made.
#[derive(Debug)]
pub enum MintError {
    /// The state folder can't be used.
    State(CaError),
    /// The names make no identity.
    Identity(String),
    /// The key could not sign.
    Signing(String),
}

impl fmt::Display for MintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(error) => error.fmt(f),
            Self::Identity(reason) => f.write_str(reason),
            Self::Signing(reason) => write!(f, "can't sign the token: {reason}"),
        }
    }
}

impl std::error::Error for MintError {}

/// Why a token proves nothing. The fault is the caller's; it needs another token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is no JWT, or its claims are not those of a join token.
    Malformed,
    /// It is signed by another key.
    Signature,
    /// It is signed by another method.
    Algorithm,
    /// It is for another receiver.
    Audience,
    /// Another authority made it.
    Issuer,
    /// It lacks a claim.
    Missing(String),
    /// It was valid once.
    Expired {
        /// Until when.
        at: SystemTime,
        /// The time by this host's clock.
        now: SystemTime,
    },
    /// It is for another trust domain.
    TrustDomain {
        /// The token's.
        found: String,
        /// This authority's.
        ours: TrustDomain,
    },
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the join token is malformed; make one with `tulle token`"),
            Self::Signature => f.write_str(
                "the join token was signed by another key: it is forged, or made with another --state folder",
            ),
            Self::Algorithm => f.write_str("the join token is not signed with ES256"),
            Self::Audience => write!(f, "the join token is for another audience than {AUDIENCE:?}"),
            Self::Issuer => write!(f, "the join token has another issuer than {ISSUER:?}"),
            Self::Missing(claim) => write!(f, "the join token has no claim {claim:?}"),
            Self::Expired { at, now } => write!(
                f,
                "the join token expired at {}; it is {} here; make a new one with `tulle token`",
                text(*at),
                text(*now)
            ),
            Self::TrustDomain { found, ours } => {
                write!(f, "the join token is for trust domain {found:?}, this control plane serves {ours}")
            }
        }
    }
}

impl std::error::Error for TokenError {}

/// A time for people, to the second.
fn text(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .and_then(|at| at.round(jiff::Unit::Second))
        .map_or_else(|_| "an unknown time".into(), |at| at.to_string())
}
