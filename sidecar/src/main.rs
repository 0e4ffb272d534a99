//! The `tulle-sidecar` program.
//!
//! It exits with 0 when it was told to stop, with 1 when its settings can't be met, with 2 when they are wrong, and with
//! 95 when redirection is not proven.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use tulle_sidecar::config::{Arguments, Command, Config, Settings};
use tulle_sidecar::redirect::{self, EXIT_NOT_REDIRECTED, InitSettings, ValidateSettings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(settings) => match load(&settings) {
            Ok(config) => {
                tulle_sidecar::run(config).map_or_else(|error| fail(1, error), |()| ExitCode::SUCCESS)
            }
            Err(code) => code,
        },
        Command::CheckConfig(settings) => load(&settings).map_or_else(|code| code, |_| ExitCode::SUCCESS),
        Command::Await(settings) => {
            tulle_sidecar::wait(&settings).map_or_else(|error| fail(1, error), |()| ExitCode::SUCCESS)
        }
        Command::Init(settings) => init(&settings),
        Command::Validate(settings) => validate(&settings),
    }
}

fn load(settings: &Settings) -> Result<Config, ExitCode> {
    Config::load(settings).map_err(|error| fail(2, error))
}

fn init(settings: &InitSettings) -> ExitCode {
    match redirect::init(settings) {
        Ok(text) => {
            print(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => fail(if error.is_of_settings() { 2 } else { 1 }, error),
    }
}

fn validate(settings: &ValidateSettings) -> ExitCode {
    match redirect::validate(settings) {
        Ok(proof) => {
            print(&proof);
            if proof.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_REDIRECTED) }
        }
        Err(error) => fail(1, error),
    }
}

/// A reader who has gone by now misses nothing that the exit code does not say.
fn print(text: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn fail(code: u8, error: impl fmt::Display) -> ExitCode {
    eprintln!("tulle-sidecar: {error}");
    ExitCode::from(code)
}
