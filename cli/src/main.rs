//! The `tulle` program.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tulle_cli::output::Failure;
use tulle_cli::{commands, demo, output};

/// Tulle, a service mesh: look into it, explain its decisions, try it out.
#[derive(Debug, Parser)]
#[command(name = "tulle", version, max_term_width = 100)]
#[command(after_help = "Start with `tulle demo`. Every command has examples: `tulle COMMAND --help`.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bookshop with a sidecar beside every service, and watch its traffic.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Check a cluster, before or after the installation, or manifests: what is wrong, and how to mend it.
    #[command(after_help = commands::check::EXAMPLES)]
    Check(commands::check::CheckArgs),
    /// Analyze objects, on files or in a running mesh: what is wrong, and what may not be meant so.
    #[command(after_help = commands::analyze::EXAMPLES)]
    Analyze(commands::analyze::AnalyzeArgs),
    /// Explain where a request goes and why, from manifests or from a running sidecar.
    #[command(after_help = commands::explain::EXAMPLES)]
    Explain(commands::explain::ExplainArgs),
    /// Show the connected proxies and whether they hold what was sent.
    #[command(after_help = commands::status::EXAMPLES)]
    Status(commands::status::StatusArgs),
    /// Show what a running sidecar believes: listeners, routes, clusters, endpoints, certificates.
    #[command(after_help = commands::config::EXAMPLES)]
    Config(commands::config::ConfigArgs),
    /// Print the manifests of the control plane, for `kubectl apply -f -`.
    #[command(after_help = commands::install::INSTALL_EXAMPLES)]
    Install(commands::install::InstallArgs),
    /// Print what was installed, for `kubectl delete -f -`.
    #[command(after_help = commands::install::UNINSTALL_EXAMPLES)]
    Uninstall(commands::install::UninstallArgs),
    /// Put sidecars into the pods of manifests.
    #[command(after_help = commands::inject::INJECT_EXAMPLES)]
    Inject(Box<commands::inject::InjectCommand>),
    /// Take sidecars out of the pods of manifests.
    #[command(after_help = commands::inject::UNINJECT_EXAMPLES)]
    Uninject(commands::inject::UninjectCommand),
    /// Make a join token, by which a workload proves who it is to the control plane.
    #[command(after_help = commands::token::EXAMPLES)]
    Token(commands::token::TokenArgs),
    /// Print the file with which Envoy or a gRPC program finds the control plane.
    #[command(after_help = commands::bootstrap::EXAMPLES)]
    Bootstrap(commands::bootstrap::BootstrapArgs),
    /// Get a workload's certificate into files, for Envoy and gRPC, and keep it fresh.
    #[command(after_help = commands::certs::EXAMPLES)]
    Certs(commands::certs::CertsArgs),
    /// Write a completion script for a shell to standard output.
    #[command(after_help = "Examples:\n  tulle completions bash > /etc/bash_completion.d/tulle\n  \
                            source <(tulle completions zsh)")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// One service of the demo's bookshop.
    #[command(hide = true)]
    DemoApp(demo::apps::AppArgs),
}

fn main() -> ExitCode {
    // A usage error ends here, with status 2.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("no runtime: {error}")).report(),
    };
    let ended = runtime.block_on(run(cli.command));
    ended.unwrap_or_else(|failure| failure.report())
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo(args) => demo::run(args).await?,
        Command::Check(args) => return commands::check::run(&args).await,
        Command::Analyze(args) => return commands::analyze::run(&args).await,
        Command::Explain(args) => return commands::explain::run(&args).await,
        Command::Status(args) => commands::status::run(&args).await?,
        Command::Config(args) => commands::config::run(&args).await?,
        Command::Install(args) => commands::install::install(&args)?,
        Command::Uninstall(args) => commands::install::uninstall(&args)?,
        Command::Inject(args) => commands::inject::inject(&args)?,
        Command::Uninject(args) => commands::inject::uninject(&args)?,
        Command::Token(args) => commands::token::run(&args)?,
        Command::Bootstrap(args) => commands::bootstrap::run(&args)?,
        Command::Certs(args) => commands::certs::run(args).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tulle", &mut script);
            output::write(&String::from_utf8_lossy(&script))?;
        }
        Command::DemoApp(app) => app.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_flags_of_a_command_are_the_same() {
        Cli::command().debug_assert();
    }
}
