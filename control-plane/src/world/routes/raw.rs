//! What HTTPRoute, GRPCRoute, TLSRoute and TCPRoute have in common, in one set of types.
//!
//! In: the spec of a route, whose generated types repeat the same shapes for each kind and place. Out: the same content in
//! shapes that exist once. Field names are those of the Gateway API, so the way from one to the other is serde's.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kinds::{Fraction, RetrySettings, SessionPersistence, TimeoutSettings};

/// A route's spec.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) parent_refs: Vec<ParentRef>,
    /// Server names of a TLSRoute; those of other kinds don't count in a mesh (GEP-1294).
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<Rule>,
}

impl Spec {
    /// Reads a typed spec.
    pub(super) fn of<T: Serialize>(spec: &T) -> Result<Self, String> {
        convert(spec)
    }
}

fn convert<T: Serialize, U: DeserializeOwned>(value: &T) -> Result<U, String> {
    let json = serde_json::to_value(value).map_err(|error| error.to_string())?;
    serde_path_to_error::deserialize(json).map_err(|error| error.to_string())
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ParentRef {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<i32>,
    pub(super) section_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    pub(super) name: Option<String>,
    pub(super) matches: Vec<Match>,
    pub(super) filters: Vec<Filter>,
    pub(super) backend_refs: Vec<BackendRef>,
    pub(super) timeouts: Option<TimeoutSettings>,
    pub(super) retry: Option<RawRetry>,
    pub(super) session_persistence: Option<RawSession>,
}

/// The Gateway API's `HTTPRouteRetry`, whose numbers are wider.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawRetry {
    codes: Vec<i64>,
    attempts: Option<i64>,
    backoff: Option<crate::kinds::Duration>,
}

impl RawRetry {
    /// The same in Tulle's own kind; numbers that are out of range are left to the caller to report.
    pub(super) fn settings(&self) -> Result<RetrySettings, String> {
        let codes = self.codes.iter().map(|code| match u16::try_from(*code) {
            Ok(code) if (400..600).contains(&code) => Ok(code),
            _ => Err(format!("{code} is not a status that a request may be tried again on (400 to 599)")),
        });
        let attempts = self.attempts.map(|attempts| {
            u32::try_from(attempts).map_err(|_| format!("{attempts} is not a number of retries"))
        });
        Ok(RetrySettings {
            codes: codes.collect::<Result<_, _>>()?,
            attempts: attempts.transpose()?,
            backoff: self.backoff,
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawSession {
    pub(super) session_name: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: crate::kinds::PersistenceType,
    pub(super) absolute_timeout: Option<crate::kinds::Duration>,
    pub(super) idle_timeout: Option<String>,
    pub(super) cookie_config: Option<CookieConfig>,
}

impl RawSession {
    /// The same in Tulle's own kind. A cookie outlives the browser's session only where its lifetime is permanent.
    pub(super) fn settings(&self) -> SessionPersistence {
        let lifetime = self.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_deref());
        SessionPersistence {
            session_name: self.session_name.clone(),
            kind: self.kind,
            absolute_timeout: self.absolute_timeout.filter(|_| lifetime == Some("Permanent")),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CookieConfig {
    lifetime_type: Option<String>,
}

/// A match of an HTTPRoute (`path`, `queryParams`, `method` as text) or of a GRPCRoute (`method` as an object).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Match {
    pub(super) path: Option<Typed>,
    pub(super) headers: Vec<Typed>,
    pub(super) query_params: Vec<Typed>,
    pub(super) method: Option<Method>,
}

/// A value, how it is compared, and the name that it has, where it has one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Typed {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) name: String,
    pub(super) value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Method {
    Http(String),
    Grpc {
        #[serde(rename = "type")]
        kind: Option<String>,
        service: Option<String>,
        method: Option<String>,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Filter {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) request_header_modifier: Option<HeaderModifier>,
    pub(super) response_header_modifier: Option<HeaderModifier>,
    pub(super) request_mirror: Option<Mirror>,
    pub(super) request_redirect: Option<Redirect>,
    pub(super) url_rewrite: Option<UrlRewrite>,
    pub(super) extension_ref: Option<ExtensionRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderModifier {
    pub(super) set: Vec<Header>,
    pub(super) add: Vec<Header>,
    pub(super) remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mirror {
    pub(super) backend_ref: BackendRef,
    #[serde(default)]
    pub(super) percent: Option<i32>,
    #[serde(default)]
    pub(super) fraction: Option<Fraction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Redirect {
    pub(super) scheme: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifier>,
    pub(super) port: Option<i32>,
    pub(super) status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct UrlRewrite {
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PathModifier {
    pub(super) replace_full_path: Option<String>,
    pub(super) replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ExtensionRef {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct BackendRef {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<i32>,
    pub(super) weight: Option<i32>,
    pub(super) filters: Vec<Filter>,
}
