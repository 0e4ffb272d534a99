//! `tulle analyze`: what is wrong, and what may not be meant so, across all objects.
//!
//! In: manifests, the objects of a cluster, or a running control plane. Out: findings, each with a code that can be looked up ([`codes`]), the object,
//! and what to do. It is `tulle check` and more: what no object is wrong about by itself.

pub mod codes;
mod live;
mod objects;
mod pods;
mod problems;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tulle_control_plane::source::Place;

use self::codes::{Code, Level};
use super::cluster::ClusterArgs;
use super::manifests::{Manifests, MeshArgs};
use crate::output::{Failure, OutputArgs, print, style, write};

/// What is looked at.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// A manifest, a folder of manifests, or - for standard input; may be given several times. Without it, the objects of
    /// the cluster are read.
    #[arg(short = 'f', long = "filename", value_name = "DIR_OR_FILE", num_args = 1.., conflicts_with = "control_plane")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The HTTP API of a control plane that is asked instead: what became of its objects, and what sidecars say.
    #[arg(long, value_name = "URL", env = "TULLE_CONTROL_PLANE")]
    control_plane: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Only findings of this namespace, and of no namespace.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Leave out findings with these codes.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    suppress: Vec<String>,
    /// End with status 1 when there is a finding as bad as this.
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Level::Error)]
    failure_threshold: Level,
    /// Print what can be found, and what it means.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle analyze -f manifests/                        files, before they are applied
  tulle analyze                                      the objects of the cluster, as the control plane reads them
  tulle analyze --control-plane 127.0.0.1:15014      what runs: objects, sidecars and what those reject
  tulle analyze -n shop --failure-threshold warning  one namespace; warnings fail too
  kubectl get ns,svc,pods,httproutes -A -o yaml | tulle analyze -f -

Exit status: 0 without findings as bad as the threshold (error, where none is given), 1 with some, 2 when called wrongly.";

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) code: Code,
    pub(crate) name: &'static str,
    #[serde(rename = "severity")]
    pub(crate) level: Level,
    /// The object, as `Kind namespace/name`; empty where none is known.
    pub(crate) object: String,
    pub(crate) namespace: String,
    /// Where it is written, as `<file>:<line>:`; empty where that is not known.
    pub(crate) place: String,
    /// The field; empty for the whole object.
    pub(crate) field: String,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Finding {
    /// A finding about an object.
    pub(crate) fn about(
        code: Code,
        (kind, namespace, name): (&str, &str, &str),
        field: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let object = if namespace.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {namespace}/{name}")
        };
        Self {
            code,
            name: code.name(),
            level: code.level(),
            object,
            namespace: if kind == "Namespace" { name.into() } else { namespace.into() },
            place: String::new(),
            field: field.into(),
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// The same with where the object is written, if in a file.
    pub(crate) fn written(mut self, place: Option<&Arc<Place>>) -> Self {
        if let Some(place) = place {
            self.place = format!("{}:{}:", place.file.display(), place.line_of(&self.field));
        }
        self
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
    infos: usize,
}

/// Looks, and prints what was found.
///
/// # Errors
/// When objects can't be read, or the control plane does not answer.
pub async fn run(args: &AnalyzeArgs) -> Result<ExitCode, Failure> {
    if args.list {
        write(&codes::document())?;
        return Ok(ExitCode::SUCCESS);
    }
    for code in &args.suppress {
        if !Code::ALL.iter().any(|known| known.to_string() == *code) {
            return Err(Failure::usage(format!("there is no code {code}; tulle analyze --list names all")));
        }
    }
    let mut findings = match (&args.files[..], &args.control_plane) {
        ([], Some(control_plane)) => live::findings(control_plane).await?,
        ([], None) => of_objects(&Manifests::read(&args.cluster, &args.mesh).await?),
        (files, _) => of_objects(&Manifests::load(files, &args.mesh)?),
    };
    findings.retain(|finding| {
        let wanted = args.namespace.as_ref();
        !args.suppress.contains(&finding.code.to_string())
            && (finding.namespace.is_empty()
                || wanted.is_none_or(|namespace| *namespace == finding.namespace))
    });
    findings.sort_by(|left, right| (right.level, left).cmp(&(left.level, right)));
    findings.dedup();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings, infos) = (count(Level::Error), count(Level::Warning), count(Level::Info));
    let failed = findings.iter().any(|finding| finding.level >= args.failure_threshold);
    print(args.output.output, &Findings { findings, errors, warnings, infos }, table)?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_objects(manifests: &Manifests) -> Vec<Finding> {
    let mut findings = problems::findings(manifests.problems());
    findings.extend(objects::findings(&manifests.objects, &manifests.world));
    findings.extend(pods::findings(&manifests.objects));
    findings
}

fn table(all: &Findings) -> String {
    let mut text: String = all.findings.iter().map(line).collect();
    let Findings { errors, warnings, infos, .. } = *all;
    let sum = format!("{errors} errors, {warnings} warnings, {infos} notes");
    let sum = match (errors, warnings) {
        (0, 0) => style::good(sum),
        (0, _) => style::doubtful(sum),
        _ => style::bad(sum),
    };
    text.push_str(&sum);
    text.push('\n');
    text
}

/// `<severity> <code> <place><object>: <field>: <message>`, and the hint below it.
fn line(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Error => style::bad(finding.level),
        Level::Warning => style::doubtful(finding.level),
        Level::Info => style::faint(finding.level),
    };
    let part = |text: &str| if text.is_empty() { String::new() } else { format!("{text}: ") };
    let Finding { code, place, object, field, message, hint, .. } = finding;
    let place = if place.is_empty() { String::new() } else { format!("{place} ") };
    format!("{level} {code} {place}{}{}{message}\n    {hint}\n", part(object), part(field))
}
