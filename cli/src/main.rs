//! The `tulle` program.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tulle_cli::{commands, demo};

/// Tulle, a service mesh: look into it, explain its decisions, try it out.
#[derive(Debug, Parser)]
#[command(name = "tulle", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bookshop with a sidecar beside every service, and watch its traffic.
    Demo(demo::DemoArgs),
    /// Make a join token, by which a workload proves who it is to the control plane.
    Token(commands::token::TokenArgs),
    /// Write a completion script for a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// One service of the demo's bookshop.
    #[command(subcommand, hide = true)]
    DemoApp(demo::apps::App),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Token(args) => commands::token::run(&args),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "tulle", &mut std::io::stdout());
                Ok(())
            }
            Command::DemoApp(app) => app.run().await,
        }
    });
    // A task that waits for standard input would hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    let (red, plain) = if std::io::stderr().is_terminal() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{red}error:{plain} {message}");
    ExitCode::FAILURE
}
