//! Asking a running control plane or sidecar over HTTP.

use serde::de::DeserializeOwned;

use crate::local::fetch;
use crate::output::Failure;

/// Gets a page and reads it as JSON. `address` is `host:port`, with or without `http://`.
///
/// # Errors
/// When nobody answers there, the answer is not a success, or is of another form than this version knows.
pub(super) async fn get<T: DeserializeOwned>(
    address: &str,
    path: &str,
    query: &[(&str, String)],
) -> Result<T, Failure> {
    let base = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let mut url = reqwest::Url::parse(&url)
        .map_err(|error| Failure::usage(format!("{address} is not an address: {error}")))?;
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
        // A form's way to write a space, which is not everyone's; a plus itself is percent-encoded by now.
        let plain = url.query().map(|query| query.replace('+', "%20"));
        url.set_query(plain.as_deref());
    }
    let (status, text) = fetch(url.as_str())
        .await
        .map_err(|error| Failure::new(format!("{base} does not answer: {error}; is the address right?")))?;
    if status != 200 {
        return Err(Failure::new(format!("{base}{path} says {status}: {}", text.trim())));
    }
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("{base}{path} does not say what this version of tulle understands: {error}"))
    })
}
