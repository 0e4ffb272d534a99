//! Tokens of service accounts: how a pod proves who it is.
//!
//! In: a token that the kubelet put into a pod. Out: the identity of the pod's service account. The API server says whose
//! the token is (TokenReview, for our audience), and what the pod is that it is bound to; nothing is believed that it did
//! not say, nothing is remembered, so that a pod's right ends with the pod. No error, log or `Debug` output holds a token.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::time::timeout;
use tonic::Status;
use tulle_mesh::identity::{SpiffeId, TrustDomain};

use super::tokens::{AUDIENCE, MAX_TOKEN, Proven, claims};
use crate::kubernetes::with_causes;

/// Reviews per second in the long run, and at once after a quiet time: what the API server is asked for at most, whoever
/// calls. Sidecars ask every 12 hours; a mesh that starts as a whole comes back until all are served.
const RATE: f64 = 100.0;
const BURST: f64 = 500.0;

/// How long the API server may take for one of two questions.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the API server says of a token's pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Proves tokens with the help of an API server.
pub struct Reviewer {
    client: Client,
    rate: Mutex<Bucket>,
}

/// How many reviews are left.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        *self = Self { left: (self.left + filled).min(BURST), at: now };
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reviewer")
    }
}

/// What is read of a token that the API server vouches for.
#[derive(Deserialize)]
struct Expiry {
    exp: u64,
}

/// A pod that a token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

impl Reviewer {
    /// Asks the API server of `client`.
    pub fn new(client: Client) -> Self {
        Self { client, rate: Mutex::new(Bucket { left: BURST, at: Instant::now() }) }
    }

    /// Who the token proves its sender to be.
    ///
    /// # Errors
    /// When it proves nothing, or nobody can tell now; never with the token in it.
    pub async fn prove(&self, token: &str, trust_domain: &TrustDomain) -> Result<Proven, ReviewError> {
        let Some(Expiry { exp }) = claims(token).filter(|_| token.len() <= MAX_TOKEN) else {
            return Err(ReviewError::Malformed);
        };
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return Err(ReviewError::Rate);
        }
        let bound = self.review(token).await?;
        self.check_pod(&bound).await?;
        let identity = SpiffeId::workload(trust_domain, &bound.namespace, &bound.account)
            .map_err(|error| ReviewError::Refused(error.to_string()))?;
        let expires =
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)).ok_or(ReviewError::Malformed)?;
        Ok(Proven { identity, expires })
    }

    async fn review(&self, token: &str) -> Result<Bound, ReviewError> {
        let spec = TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![AUDIENCE.into()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = in_time(api.create(&PostParams::default(), &review)).await?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status.error.unwrap_or_else(|| "it knows no such token".into());
            return Err(ReviewError::Refused(format!("the API server refuses the token: {reason}")));
        }
        // An API server that does not know of audiences says nothing of them.
        if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
            return Err(ReviewError::Refused(format!("the token is for another audience than {AUDIENCE:?}")));
        }
        bound(&status.user.unwrap_or_default()).map_err(ReviewError::Refused)
    }

    async fn check_pod(&self, bound: &Bound) -> Result<(), ReviewError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let pod = in_time(api.get_opt(&bound.pod)).await?;
        check_pod(bound, pod.as_ref()).map_err(ReviewError::Refused)
    }
}

/// The pod and service account that a reviewed token stands for.
fn bound(user: &UserInfo) -> Result<Bound, String> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|name| name.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(format!("the token is {name:?}'s, which is no service account"));
    };
    let one = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(format!(
            "the token of {name:?} is not bound to a pod; use the one that the kubelet puts into the pod (a projected \
             volume with audience {AUDIENCE:?})"
        )),
    };
    Ok(Bound {
        namespace: namespace.into(),
        account: account.into(),
        pod: one(POD_NAME)?,
        uid: one(POD_UID)?,
    })
}

/// Whether the pod still is what the token was made for.
fn check_pod(bound: &Bound, pod: Option<&Pod>) -> Result<(), String> {
    let Bound { namespace, account, pod: name, uid } = bound;
    let Some(pod) = pod else { return Err(format!("the token's pod {namespace}/{name} is gone")) };
    if pod.metadata.uid.as_ref() != Some(uid) {
        return Err(format!("the token is of an earlier pod {namespace}/{name}: another has its name now"));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(format!("the token's pod {namespace}/{name} is being deleted"));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(format!("the token's pod {namespace}/{name} has ended ({phase})"));
    }
    let runs_as =
        pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    if runs_as != account {
        return Err(format!(
            "the token's pod {namespace}/{name} runs as {runs_as:?}, the token is of {account:?}"
        ));
    }
    Ok(())
}

async fn in_time<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ReviewError> {
    match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ReviewError::Unavailable(with_causes(&error))),
        Err(_) => {
            Err(ReviewError::Unavailable(format!("it does not answer within {} s", PATIENCE.as_secs())))
        }
    }
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReviewError {
    /// It is no JWT. The caller's fault.
    Malformed,
    /// It proves nothing, for this reason. The caller's fault; it needs another token.
    Refused(String),
    /// The API server can't be asked. Another attempt may help.
    Unavailable(String),
    /// Too many ask. Another attempt helps.
    Rate,
}

impl ReviewError {
    /// What the caller is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Malformed | Self::Refused(_) => Status::unauthenticated(self.to_string()),
            Self::Unavailable(_) => Status::unavailable(self.to_string()),
            Self::Rate => Status::resource_exhausted(self.to_string()),
        }
    }
}

impl fmt::Display for ReviewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => {
                f.write_str("the token is no JWT; use the one that the kubelet puts into the pod")
            }
            Self::Refused(reason) => f.write_str(reason),
            Self::Unavailable(reason) => {
                write!(f, "the token can't be checked now, the API server can't be asked: {reason}")
            }
            Self::Rate => f.write_str("too many tokens are being checked; try again in a few seconds"),
        }
    }
}

impl std::error::Error for ReviewError {}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    fn token_of(pod: &str, uid: &str) -> Bound {
        Bound { namespace: "shop".into(), account: "cart".into(), pod: pod.into(), uid: uid.into() }
    }

    fn pod() -> Pod {
        Pod {
            metadata: ObjectMeta { uid: Some("1".into()), ..ObjectMeta::default() },
            spec: Some(PodSpec { service_account_name: Some("cart".into()), ..PodSpec::default() }),
            status: Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() }),
        }
    }

    #[test]
    fn a_token_is_as_good_as_its_pod() {
        let token = token_of("cart-1", "1");
        assert_eq!(check_pod(&token, Some(&pod())), Ok(()));
        let changed = |change: &dyn Fn(&mut Pod)| {
            let mut pod = pod();
            change(&mut pod);
            check_pod(&token, Some(&pod)).unwrap_err()
        };
        assert!(check_pod(&token, None).unwrap_err().contains("is gone"));
        assert!(changed(&|pod| pod.metadata.uid = Some("2".into())).contains("an earlier pod"));
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        assert!(
            changed(&|pod| pod.metadata.deletion_timestamp = Some(now.clone())).contains("being deleted")
        );
        let over = |pod: &mut Pod| {
            pod.status = Some(PodStatus { phase: Some("Failed".into()), ..PodStatus::default() })
        };
        assert!(changed(&over).contains("has ended"));
        let other = |pod: &mut Pod| {
            pod.spec = Some(PodSpec { service_account_name: Some("root".into()), ..PodSpec::default() });
        };
        assert!(changed(&other).contains("runs as \"root\""));
    }

    #[test]
    fn only_service_accounts_with_a_pod_are_taken() {
        let user = |name: &str, extra: &[(&str, &[&str])]| UserInfo {
            username: Some(name.into()),
            extra: Some(
                extra
                    .iter()
                    .map(|(key, values)| ((*key).into(), values.iter().map(ToString::to_string).collect()))
                    .collect(),
            ),
            ..UserInfo::default()
        };
        let pod: &[(&str, &[&str])] = &[(POD_NAME, &["cart-1"]), (POD_UID, &["1"])];
        assert_eq!(bound(&user("system:serviceaccount:shop:cart", pod)), Ok(token_of("cart-1", "1")));
        assert!(bound(&user("admin", pod)).unwrap_err().contains("no service account"));
        for extra in [&pod[..1], &pod[1..], &[(POD_NAME, &["a", "b"][..]), (POD_UID, &["1"][..])]] {
            let error = bound(&user("system:serviceaccount:shop:cart", extra)).unwrap_err();
            assert!(error.contains("not bound to a pod"), "{error}");
        }
    }

    #[test]
    fn reviews_are_bounded() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST, at: start };
        let at_once = (0..2 * BURST as usize).filter(|_| bucket.take(start)).count();
        assert_eq!(at_once, BURST as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..2 * BURST as usize).filter(|_| bucket.take(later)).count(), RATE as usize);
    }
}
