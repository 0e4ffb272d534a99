//! `tulle check`: whether all is well: with a cluster before and after the installation, or with manifests.
//!
//! In: a cluster, with the user's own rights, or files. Out: a verdict with a reason and a remedy for each thing that was
//! looked at. Nothing in the cluster is changed: what is tried is tried as a dry run.

mod before;
mod control_plane;
mod files;
mod identity;
mod kubernetes;
mod pods;
mod report;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use self::report::Report;
use super::cluster::ClusterArgs;
use super::manifests::MeshArgs;
use crate::output::{Failure, OutputArgs};

/// What is checked.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A manifest, a folder of manifests, or - for standard input; may be given several times. Without it, the cluster is
    /// checked.
    #[arg(short = 'f', long = "filename", value_name = "DIR_OR_FILE", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Check whether the cluster is ready for an installation.
    #[arg(long, conflicts_with = "files")]
    pre: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
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
  tulle check --pre                       whether the cluster is ready for `tulle install`
  tulle check                             whether what is installed works
  tulle check -f manifests/               every manifest below a folder
  tulle check -f routes.yaml --strict     one file; warnings fail too
  kubectl get services,httproutes -A -o yaml | tulle check -f -

Nothing is changed: what is tried in the cluster is a dry run.
Exit status: 0 without errors (with --strict: without warnings too), 1 with some, 2 when called wrongly.";

/// Checks, and prints what was found.
///
/// # Errors
/// When manifests can't be read, or there is no kubeconfig. A cluster that does not answer is a finding.
pub async fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    if !args.files.is_empty() {
        return files::run(&args.files, &args.mesh, args.strict, args.output);
    }
    let cluster = args.cluster.connect().await?;
    let mut report = Report::default();
    if kubernetes::check(&cluster, &mut report).await {
        if args.pre {
            before::check(&cluster, &mut report).await?;
        } else {
            kubernetes::kinds(&cluster, &mut report).await?;
            control_plane::check(&cluster, &mut report).await;
            webhooks::check(&cluster, &mut report).await;
            identity::check(&cluster, &mut report).await;
            pods::check(&cluster, &mut report).await;
        }
    }
    report.print(args.output.output)?;
    Ok(if report.failed(args.strict) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
