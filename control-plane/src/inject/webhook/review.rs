//! AdmissionReviews, `admission.k8s.io/v1`: what of them is read, and how an answer is written.
//!
//! Objects stay JSON, so that no field of a newer API is lost on the way.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inject::patch::Operation;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// The longest warning that the API server passes on whole, in bytes.
const MAX_WARNING: usize = 256;

/// A review that waits for its answer.
#[derive(Debug)]
pub struct Review(());

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The answer repeats it.
    pub uid: String,
    /// What kind of object it is.
    pub kind: GroupVersionKind,
    /// The object's namespace. The object itself may not say it.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The object's name; empty while it is only generated.
    #[serde(default)]
    pub name: String,
    /// The object.
    #[serde(default)]
    pub object: Option<Value>,
    /// What it was before, where it is changed.
    #[serde(default)]
    pub old_object: Option<Value>,
    /// Nothing is stored.
    #[serde(default)]
    pub dry_run: bool,
}

/// What kind of object.
#[derive(Clone, Debug, Deserialize)]
pub struct GroupVersionKind {
    /// The API group; empty for the core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

impl Request {
    /// Whether the object is a Pod.
    pub fn is_pod(&self) -> bool {
        self.kind.group.is_empty() && self.kind.kind == "Pod"
    }
}

impl Review {
    /// Reads a review.
    ///
    /// # Errors
    /// When it is none, or one of another version, with the reason.
    pub fn read(body: &[u8]) -> Result<(Self, Request), String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Read {
            api_version: String,
            kind: String,
            request: Option<Request>,
        }
        let read: Read = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not an AdmissionReview: {error}"))?;
        if read.api_version != API_VERSION || read.kind != KIND {
            return Err(format!("{} {} is not {API_VERSION} {KIND}", read.api_version, read.kind));
        }
        let request = read.request.ok_or_else(|| "the review has no request".to_owned())?;
        Ok((Self(()), request))
    }

    /// The review with its answer.
    pub fn answered(self, response: Answer) -> Answered {
        Answered { api_version: API_VERSION, kind: KIND, response }
    }
}

/// A review with its answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answered {
    api_version: &'static str,
    kind: &'static str,
    response: Answer,
}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Answer {
    /// The object may be stored.
    pub fn allowed(request: &Request) -> Self {
        Self {
            uid: request.uid.clone(),
            allowed: true,
            status: None,
            patch: None,
            patch_type: None,
            warnings: Vec::new(),
        }
    }

    /// It may not, and why.
    pub fn denied(request: &Request, message: String) -> Self {
        let status = Status { code: 422, reason: "Invalid", message };
        Self { allowed: false, status: Some(status), ..Self::allowed(request) }
    }

    /// It is stored with these changes.
    #[must_use]
    pub fn patched(mut self, operations: &[Operation]) -> Self {
        if !operations.is_empty() {
            let patch = serde_json::to_vec(operations).expect("operations are text and JSON values");
            self.patch = Some(STANDARD.encode(patch));
            self.patch_type = Some("JSONPatch");
        }
        self
    }

    /// Its author is told this.
    #[must_use]
    pub fn warned(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings.into_iter().map(|mut warning| {
            if warning.len() > MAX_WARNING {
                let end = (0..=MAX_WARNING - 3).rev().find(|end| warning.is_char_boundary(*end));
                warning.truncate(end.unwrap_or_default());
                warning.push_str("...");
            }
            warning
        }));
        self
    }

    /// Whether the object may be stored.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }
}
