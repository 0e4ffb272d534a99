//! What HTTPRoute, GRPCRoute, TLSRoute and TCPRoute have in common, in one set of types.
//!
//! In: the spec of a route, whose generated types repeat the same shapes for each kind and place. Out: the same content in
//! shapes that exist once. Field names are those of the Gateway API, so the way from one to the other is serde's.

use serde::{Deserialize, Serialize};

use super::FieldFault;
use crate::kinds::{CookieConfig, Fraction, RetrySettings, SessionPersistence, TimeoutSettings};

/// A route's spec.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    pub(crate) parent_refs: Vec<ParentRef>,
    /// Server names of a TLSRoute; those of other kinds don't count in a mesh (GEP-1294).
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<Rule>,
}

impl Spec {
    /// Reads a typed spec.
    ///
    /// # Errors
    /// The path of a field whose text does not have the form that the Gateway API asks for, and why.
    pub(crate) fn of<T: Serialize>(spec: &T) -> Result<Self, FieldFault> {
        let json = serde_json::to_value(spec).map_err(|error| (String::new(), error.to_string()))?;
        serde_path_to_error::deserialize(json)
            .map_err(|error| (error.path().to_string(), error.inner().to_string()))
    }

    /// Whether [`Self::of`] can read it. An object that it can't read never gets past its source.
    pub(crate) fn check<T: Serialize>(spec: &T) -> Result<(), FieldFault> {
        Self::of(spec).map(|_| ())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ParentRef {
    pub(crate) group: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) port: Option<i32>,
    pub(crate) section_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) name: Option<String>,
    pub(crate) matches: Vec<Match>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) backend_refs: Vec<BackendRef>,
    pub(crate) timeouts: Option<TimeoutSettings>,
    pub(crate) retry: Option<RawRetry>,
    pub(crate) session_persistence: Option<RawSession>,
}

/// The Gateway API's `HTTPRouteRetry`, whose numbers are wider.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawRetry {
    codes: Vec<i64>,
    attempts: Option<i64>,
    backoff: Option<crate::kinds::Duration>,
}

impl RawRetry {
    /// The same in Tulle's own kind; numbers that are out of range are left to the caller to report.
    pub(crate) fn settings(&self) -> Result<RetrySettings, String> {
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
pub(crate) struct RawSession {
    pub(crate) session_name: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: crate::kinds::PersistenceType,
    pub(crate) absolute_timeout: Option<crate::kinds::Duration>,
    pub(crate) idle_timeout: Option<String>,
    pub(crate) cookie_config: Option<CookieConfig>,
}

impl RawSession {
    /// The same in Tulle's own kind.
    pub(crate) fn settings(self) -> SessionPersistence {
        let Self { session_name, kind, absolute_timeout, idle_timeout: _, cookie_config } = self;
        SessionPersistence { session_name, kind, absolute_timeout, cookie_config }
    }
}

/// A match of an HTTPRoute (`path`, `queryParams`, `method` as text) or of a GRPCRoute (`method` as an object).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Match {
    pub(crate) path: Option<Typed>,
    pub(crate) headers: Vec<Typed>,
    pub(crate) query_params: Vec<Typed>,
    pub(crate) method: Option<Method>,
}

/// A value, how it is compared, and the name that it has, where it has one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Typed {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Method {
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
pub(crate) struct Filter {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) request_header_modifier: Option<HeaderModifier>,
    pub(crate) response_header_modifier: Option<HeaderModifier>,
    pub(crate) request_mirror: Option<Mirror>,
    pub(crate) request_redirect: Option<Redirect>,
    pub(crate) url_rewrite: Option<UrlRewrite>,
    pub(crate) extension_ref: Option<ExtensionRef>,
    pub(crate) cors: Option<Cors>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cors {
    pub(crate) allow_origins: Vec<String>,
    pub(crate) allow_credentials: bool,
    pub(crate) allow_methods: Vec<String>,
    pub(crate) allow_headers: Vec<String>,
    pub(crate) expose_headers: Vec<String>,
    /// In seconds.
    pub(crate) max_age: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HeaderModifier {
    pub(crate) set: Vec<Header>,
    pub(crate) add: Vec<Header>,
    pub(crate) remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mirror {
    pub(crate) backend_ref: BackendRef,
    #[serde(default)]
    pub(crate) percent: Option<i32>,
    #[serde(default)]
    pub(crate) fraction: Option<Fraction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
    pub(crate) port: Option<i32>,
    pub(crate) status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UrlRewrite {
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PathModifier {
    pub(crate) replace_full_path: Option<String>,
    pub(crate) replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ExtensionRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendRef {
    pub(crate) group: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) port: Option<i32>,
    pub(crate) weight: Option<i32>,
    pub(crate) filters: Vec<Filter>,
}
