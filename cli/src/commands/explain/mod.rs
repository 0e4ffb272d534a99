//! `tulle explain`: where a request goes, and why.
//!
//! In: a request in words, and either manifests or the address of a sidecar. Out: an [`Explanation`] by the engine that
//! decides about live traffic, from the listener to the verdict of each endpoint.

mod live;
mod offline;
mod render;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;
use tulle_mesh::explain::{Explanation, Outcome};

use super::cluster::ClusterArgs;
use super::manifests::{Manifests, MeshArgs};
use crate::output::{Failure, OutputArgs, print};

/// The request, and whom to ask.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A manifest, a folder of manifests, or - for standard input; may be given several times. Without it, the objects of
    /// the cluster are read.
    #[arg(short = 'f', long = "filename", value_name = "DIR_OR_FILE", num_args = 1..)]
    #[arg(conflicts_with = "sidecar")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Ask this running sidecar (its admin address) instead.
    #[arg(long, value_name = "ADDR")]
    sidecar: Option<String>,
    /// Who asks: the namespace and the service account of the client.
    #[arg(long, value_name = "NS/SA", required_unless_present = "sidecar", conflicts_with = "sidecar")]
    #[arg(value_parser = account)]
    from: Option<(String, String)>,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The request.
#[derive(Debug, Args)]
struct RequestArgs {
    /// The host that the client dials; port 80 where none is given.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = authority)]
    to: String,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// The path, with a query where there is one.
    #[arg(long, default_value = "/", value_parser = target)]
    path: String,
    /// A header, as 'name: value'; may be given several times. Host replaces the host of --to.
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle explain -f manifests/ --from shop/cart --to stock.shop --path /stock/1
  tulle explain -f manifests/ --from shop/web --to cart.shop:80 --method POST -H 'x-user: ada' -o json
  tulle explain --from shop/web --to cart.shop --path /cart/1        the objects of the cluster
  tulle explain --sidecar 127.0.0.1:15000 --to stock.shop

Exit status: 0 when the request is forwarded and let in whichever backend is drawn (or answered by a redirect),
3 when it is refused, finds no route or is not for the mesh, 1 when the question can't be answered, 2 when called wrongly.";

/// The exit status for a request that does not reach an application.
const REFUSED: u8 = 3;

/// An explanation, and what only who has the manifests knows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// What the client dials.
    dialled: String,
    #[serde(flatten)]
    explanation: Explanation,
    /// Where the routes (by name) and policies that it speaks of are written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    places: BTreeMap<String, String>,
    /// What the user should know besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Explains a request.
///
/// # Errors
/// When objects can't be read, the sidecar does not answer, or the destination is not known.
pub async fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let answer = match (&args.sidecar, &args.from) {
        (Some(sidecar), _) => live::ask(sidecar, &args.request).await?,
        (None, Some(from)) => {
            let manifests = match &args.files[..] {
                [] => Manifests::read(&args.cluster, &args.mesh).await?,
                files => Manifests::load(files, &args.mesh)?,
            };
            offline::ask(&manifests, from, &args.request)?
        }
        (None, None) => return Err(Failure::usage("--from is missing: say who asks, as NAMESPACE/ACCOUNT")),
    };
    print(args.output.output, &answer, render::text)?;
    Ok(match answer.explanation.outcome {
        Outcome::Forwarded | Outcome::Answered { .. } => ExitCode::SUCCESS,
        Outcome::Refused { .. } => ExitCode::from(REFUSED),
    })
}

impl RequestArgs {
    /// All headers but Host.
    fn header_map(&self) -> HeaderMap {
        self.headers.iter().filter(|(name, _)| name != http::header::HOST).cloned().collect()
    }

    /// The Host that the request bears.
    fn host(&self) -> Result<String, Failure> {
        match self.headers.iter().find(|(name, _)| name == http::header::HOST) {
            None => Ok(self.to.clone()),
            Some((_, value)) => match value.to_str() {
                Ok(host) => Ok(host.to_owned()),
                Err(_) => Err(Failure::usage("the Host header must be plain ASCII")),
            },
        }
    }

    /// The host and port that are dialled.
    fn dialled(&self) -> String {
        let has_port = self.to.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port { self.to.clone() } else { format!("{}:80", self.to) }
    }
}

fn account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, account)) if !namespace.is_empty() && !account.is_empty() => {
            Ok((namespace.into(), account.into()))
        }
        _ => Err("write NAMESPACE/SERVICE-ACCOUNT, such as shop/web".into()),
    }
}

fn authority(text: &str) -> Result<String, String> {
    let error = || "write HOST or HOST:PORT, such as cart.shop:80".to_owned();
    let authority: http::uri::Authority = text.parse().map_err(|_| error())?;
    let strange = authority.host().is_empty() || text.contains('@');
    if strange || (text.ends_with(':')) { Err(error()) } else { Ok(text.into()) }
}

fn target(text: &str) -> Result<String, String> {
    match http::uri::PathAndQuery::try_from(text) {
        Ok(_) if text.starts_with('/') => Ok(text.into()),
        _ => Err("write a path that starts with /, percent-encoded, such as /cart?full=1".into()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let error = || "write 'name: value', such as 'x-user: ada'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(error)?;
    Ok((name.trim().parse().map_err(|_| error())?, value.trim().parse().map_err(|_| error())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_its_form_is_refused() {
        for bad in ["", "a:", "http://a", "a/b", "user@a", "a b"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
        assert!(authority("cart.shop").is_ok() && authority("[::1]:80").is_ok());
        for bad in ["", "a", "/a b"] {
            assert!(target(bad).is_err(), "{bad}");
        }
        for bad in ["a", ": b", "a b: c", "a: \u{7}"] {
            assert!(header(bad).is_err(), "{bad}");
        }
        for bad in ["a", "/a", "a/"] {
            assert!(account(bad).is_err(), "{bad}");
        }
    }
}
