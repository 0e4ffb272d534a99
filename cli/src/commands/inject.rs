//! `tulle inject` and `tulle uninject`: sidecars in manifests, without a webhook.
//!
//! In: manifests. Out: the same, where pod templates have a sidecar, or none any more. What makes no pods passes through
//! as it is written; what does is written anew, without its comments. On standard error: what became of each object.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use tulle_control_plane::inject::args::InjectArgs;
use tulle_control_plane::inject::{self, Namespace, Settings, workloads};

use super::manifests::MeshArgs;
use crate::output::{Failure, style, write};

/// What is injected, and how.
#[derive(Debug, Args)]
pub struct InjectCommand {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    inject: InjectArgs,
}

/// What is taken back.
#[derive(Debug, Args)]
pub struct UninjectCommand {
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct Files {
    /// A manifest, or - for standard input; may be given several times.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

/// Examples of `tulle inject`, for `--help`.
pub const INJECT_EXAMPLES: &str = "\
Examples:
  tulle inject -f web.yaml > web-with-sidecar.yaml
  tulle inject --redirection cni -f web.yaml
  kubectl get deployments -n shop -o yaml | tulle inject -f - | kubectl apply -f -

Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs and Lists of them get sidecars, as if their
namespace had the label tulle.dev/inject: enabled; a Namespace among the manifests has its own word. Everything else passes
through as it is. What became of each object goes to standard error.";

/// Examples of `tulle uninject`, for `--help`.
pub const UNINJECT_EXAMPLES: &str = "\
Examples:
  tulle uninject -f web-with-sidecar.yaml
  kubectl get deployments -n shop -o yaml | tulle uninject -f - | kubectl apply -f -";

/// Injects sidecars.
///
/// # Errors
/// When manifests can't be read.
pub fn inject(args: &InjectCommand) -> Result<(), Failure> {
    let system = Settings::default().namespace;
    let mesh = args.mesh.settings();
    let settings = args.inject.settings(&mesh.trust_domain, &mesh.cluster_domain, &system);
    let documents = args.files.read()?;
    let namespaces = namespaces(&documents);
    rewrite(documents, &|object| injected(object, &namespaces, &settings))
}

/// Takes sidecars out.
///
/// # Errors
/// When manifests can't be read.
pub fn uninject(args: &UninjectCommand) -> Result<(), Failure> {
    rewrite(args.files.read()?, &|object| {
        let template = workloads::template(object)?;
        let bare = inject::uninject(template);
        let changed = bare != *template;
        *template = bare;
        Some(if changed {
            Outcome::Changed("uninjected", Vec::new())
        } else {
            Outcome::Same("no sidecar".into())
        })
    })
}

/// What became of an object.
enum Outcome {
    /// What was done, and what its owner should know.
    Changed(&'static str, Vec<String>),
    /// Nothing, and why.
    Same(String),
}

/// `None` for what makes no pods.
fn injected(
    object: &mut Value,
    namespaces: &BTreeMap<String, Namespace>,
    settings: &Settings,
) -> Option<Outcome> {
    let name = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let template = workloads::template(object)?;
    let namespace = namespaces.get(&name).cloned().unwrap_or_else(|| Namespace::enabled(name));
    Some(match inject::inject(template, &namespace, settings) {
        Ok(injected) => {
            *template = injected.template;
            Outcome::Changed("injected", injected.warnings)
        }
        Err(skip) => Outcome::Same(skip.to_string()),
    })
}

/// A document of a file.
struct Document {
    /// As it is written, with the line that begins it.
    text: String,
    value: Value,
}

impl Files {
    fn read(&self) -> Result<Vec<Document>, Failure> {
        let mut documents = Vec::new();
        for path in &self.files {
            let text = match path.as_os_str() == "-" {
                true => {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text).map(|_| text)
                }
                false => std::fs::read_to_string(path),
            };
            let text = text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            for (line, text) in split(&text) {
                let value = parse(text).map_err(|error| {
                    Failure::usage(format!("{}: the document of line {line}: {error}", path.display()))
                })?;
                documents.push(Document { text: text.into(), value });
            }
        }
        Ok(documents)
    }
}

/// A line that starts with `---` begins a document, whatever stands before it. Each comes with its first line.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut at) = (0, 1, 0);
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && at > 0 {
            documents.push((first, &text[start..at]));
            (start, first) = (at, line + 1);
        }
        at += content.len();
    }
    documents.push((first, &text[start..]));
    documents
}

/// As kubectl reads it: `yes` and `on` are true where they are not in quotes.
fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    let value = serde_saphyr::from_str_with_options::<Option<Value>>(text, options);
    value.map(Option::unwrap_or_default).map_err(|error| error.to_string())
}

/// The Namespaces among the manifests.
fn namespaces(documents: &[Document]) -> BTreeMap<String, Namespace> {
    let mut namespaces = BTreeMap::new();
    let listed =
        documents.iter().flat_map(|document| document.value["items"].as_array().into_iter().flatten());
    for object in documents.iter().map(|document| &document.value).chain(listed) {
        let (Some("Namespace"), Some(name)) = (object["kind"].as_str(), object["metadata"]["name"].as_str())
        else {
            continue;
        };
        let map = |field: &str| {
            let entries = object["metadata"][field].as_object().into_iter().flatten();
            entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        let (labels, annotations) = (map("labels"), map("annotations"));
        namespaces.insert(name.to_owned(), Namespace { name: name.to_owned(), labels, annotations });
    }
    namespaces
}

/// Writes every document, and tells what became of each object that makes pods.
fn rewrite(documents: Vec<Document>, change: &impl Fn(&mut Value) -> Option<Outcome>) -> Result<(), Failure> {
    let mut text = String::new();
    for mut document in documents {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        if visit(&mut document.value, change) {
            let yaml = serde_saphyr::to_string(&document.value).map_err(Failure::new)?;
            text.push_str("---\n");
            text.push_str(&yaml);
        } else {
            if !text.is_empty() && !document.text.starts_with("---") {
                text.push_str("---\n");
            }
            text.push_str(&document.text);
        }
    }
    write(&text)
}

/// Whether something in it was changed. Lists are as `kubectl get` makes them.
fn visit(object: &mut Value, change: &impl Fn(&mut Value) -> Option<Outcome>) -> bool {
    if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List"))
        && let Some(items) = object.get_mut("items").and_then(Value::as_array_mut)
    {
        // Each is visited, so this must not stop at the first.
        return items.iter_mut().fold(false, |changed, item| visit(item, change) | changed);
    }
    let Some(outcome) = change(object) else { return false };
    let label = workloads::label(object);
    match outcome {
        Outcome::Changed(what, warnings) => {
            tell(format!("{}: {label}", style::good(what)));
            for warning in warnings {
                tell(format!("{}: {label}: {warning}", style::doubtful("warning")));
            }
            true
        }
        Outcome::Same(why) => {
            tell(format!("{}: {label}: {why}", style::doubtful("skipped")));
            false
        }
    }
}

fn tell(line: String) {
    anstream::eprintln!("{line}");
}
