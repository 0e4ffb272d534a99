//! The answer of a running sidecar.

use std::collections::BTreeMap;

use tulle_mesh::explain::Explanation;

use super::{Answer, RequestArgs};
use crate::commands::remote;
use crate::output::Failure;

/// Asks the admin interface of a sidecar. It holds no other workload's policies, so verdicts of peers are not in its
/// answer.
pub(super) async fn ask(sidecar: &str, request: &RequestArgs) -> Result<Answer, Failure> {
    let dialled = request.dialled();
    let mut query = vec![
        ("to", dialled.clone()),
        ("host", request.host()?),
        ("method", request.method.to_string()),
        ("path", request.path.clone()),
    ];
    for (name, value) in &request.headers {
        query.push(("header", format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))));
    }
    let explanation: Explanation = remote::get(sidecar, "/explain", &query).await?;
    Ok(Answer { dialled, explanation, places: BTreeMap::new(), notes: Vec::new() })
}
