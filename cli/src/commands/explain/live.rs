//! The answer of a running sidecar.

use std::collections::BTreeMap;

use serde::Deserialize;
use tulle_mesh::explain::Explanation;

use super::{Answer, REFUSED, RequestArgs};
use crate::commands::remote;
use crate::output::Failure;

/// What of a sidecar's answer is shown.
#[derive(Deserialize)]
struct Told {
    reason: Option<String>,
    explanation: Option<Explanation>,
}

/// Asks the admin interface of a sidecar. It holds no other workload's policies, so verdicts of peers are not in its
/// answer.
pub(super) async fn ask(sidecar: &str, request: &RequestArgs) -> Result<Answer, Failure> {
    let dialled = request.dialled();
    let mut query = vec![
        ("host", request.to.clone()),
        ("method", request.method.to_string()),
        ("path", request.path.clone()),
    ];
    for (name, value) in &request.headers {
        query.push(("header", format!("{name}:{}", String::from_utf8_lossy(value.as_bytes()))));
    }
    let told: Told = remote::get(sidecar, "/explain", &query).await?;
    let Some(explanation) = told.explanation else {
        let reason = told.reason.unwrap_or_else(|| "the sidecar does not say why".into());
        return Err(Failure::with(REFUSED, format!("{dialled} is not known to the sidecar: {reason}")));
    };
    Ok(Answer { dialled, explanation, places: BTreeMap::new(), notes: Vec::new() })
}
