//! What is wrong with manifests, before they are applied.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use tulle_control_plane::source::{Problem, Severity};

use crate::commands::manifests::{Manifests, MeshArgs};
use crate::output::{Failure, OutputArgs, print, style};

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
pub(super) fn run(
    files: &[PathBuf],
    mesh: &MeshArgs,
    strict: bool,
    output: OutputArgs,
) -> Result<ExitCode, Failure> {
    let manifests = Manifests::load(files, mesh)?;
    let problems = manifests.problems();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let findings = Findings {
        errors,
        warnings: problems.len() - errors,
        objects: manifests.objects.refs().len(),
        problems,
    };
    print(output.output, &findings, table)?;
    let failed = findings.errors > 0 || (strict && findings.warnings > 0);
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
