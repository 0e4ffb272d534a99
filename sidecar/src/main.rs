//! The `tulle-sidecar` program.
//!
//! It exits with 0 when it was told to stop, with 1 when its settings can't be met, and with 2 when they are wrong.

use std::process::ExitCode;

use clap::Parser;
use tulle_sidecar::config::{Arguments, Command, Config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let (settings, run) = match Arguments::parse().command {
        Command::Run(settings) => (settings, true),
        Command::CheckConfig(settings) => (settings, false),
    };
    let config = match Config::load(&settings) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tulle-sidecar: {error}");
            return ExitCode::from(2);
        }
    };
    if !run {
        return ExitCode::SUCCESS;
    }
    match tulle_sidecar::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-sidecar: {error}");
            ExitCode::FAILURE
        }
    }
}
