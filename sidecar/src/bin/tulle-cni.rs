//! The `tulle-cni` program: a CNI plugin where a container runtime calls it, else its own installer.
//!
//! It exits with 0 when all is well, with 1 when not, and with 2 when the arguments are wrong.

use std::process::ExitCode;
use std::{env, io};

use clap::{Parser, Subcommand};
use tulle_sidecar::cni::{self, Folders};

/// Redirects pods' traffic to their sidecars in the container runtime's network set-up, where pods must not do it
/// themselves.
///
/// Called by a container runtime, with CNI_COMMAND in the environment, it is a chained CNI plugin.
#[derive(Debug, Parser)]
#[command(name = "tulle-cni", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put the plugin in a node's folders and keep it there until told to stop.
    Install(Folders),
    /// Say why pods that start now get no rules, or print nothing.
    Installed(Folders),
}

fn main() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_some() {
        let succeeded = cni::plugin(|name| env::var_os(name), io::stdin().lock(), io::stdout().lock());
        return if succeeded { ExitCode::SUCCESS } else { ExitCode::from(1) };
    }
    let outcome = match Arguments::parse().command {
        Command::Install(folders) => cni::install(&folders),
        Command::Installed(folders) => cni::is_installed(&folders),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-cni: {error}");
            ExitCode::from(1)
        }
    }
}
