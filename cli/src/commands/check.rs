//! `tulle check`: what is wrong with manifests, before they are applied.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tulle_control_plane::source::{Problem, Severity};

use super::manifests::{Manifests, MeshArgs};
use crate::output::{Failure, OutputArgs, print, style};

/// What is checked.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A manifest, a folder of manifests, or - for standard input; may be given several times.
    #[arg(short = 'f', long = "filename", value_name = "DIR_OR_FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// End with status 1 on warnings too.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle check -f manifests/               every manifest below a folder
  tulle check -f routes.yaml --strict     one file; warnings fail too
  kubectl get services,httproutes -A -o yaml | tulle check -f -

Exit status: 0 without errors (with --strict: without warnings too), 1 with some, 2 when called wrongly.";

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    problems: Vec<Problem>,
    errors: usize,
    warnings: usize,
    objects: usize,
}

/// Checks manifests: a line per problem, and their number.
///
/// # Errors
/// When the manifests can't be read.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let manifests = Manifests::load(&args.files, &args.mesh)?;
    let problems = manifests.problems();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let findings = Findings {
        errors,
        warnings: problems.len() - errors,
        objects: manifests.objects.refs().len(),
        problems,
    };
    print(args.output.output, &findings, table)?;
    let failed = findings.errors > 0 || (args.strict && findings.warnings > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(findings: &Findings) -> String {
    let mut text: String = findings.problems.iter().map(|problem| line(problem) + "\n").collect();
    let count = |number: usize, noun: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{number} {noun}{plural}")
    };
    let Findings { errors, warnings, objects, .. } = *findings;
    let (errors, warnings) = match (errors, warnings) {
        (0, 0) => (style::good("no errors"), "no warnings".into()),
        (0, _) => ("no errors".into(), style::doubtful(count(warnings, "warning"))),
        _ => (style::bad(count(errors, "error")), count(warnings, "warning")),
    };
    text.push_str(&format!("{errors}, {warnings} in {}\n", count(objects, "object")));
    text
}

/// The problem's own text, with a colour for its severity.
fn line(problem: &Problem) -> String {
    let severity = match problem.severity {
        Severity::Error => style::bad(problem.severity),
        Severity::Warning => style::doubtful(problem.severity),
    };
    format!("{}{severity}: {}", problem.place(), problem.message())
}
