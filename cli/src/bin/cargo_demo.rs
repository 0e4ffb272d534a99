//! `cargo demo`: builds the three programs, then runs `tulle demo` with the arguments given.
//!
//! Cargo builds only the program that an alias names, but the demo starts the others as well; this closes that gap.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let programs = ["tulle", "tulle-control-plane", "tulle-sidecar"];
    let mut build = Command::new(cargo);
    build.args(["build", "--workspace"]);
    for program in programs {
        build.args(["--bin", program]);
    }
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    match build.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            return ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        Err(error) => {
            eprintln!("cargo can't be run: {error}");
            return ExitCode::FAILURE;
        }
    }
    let tulle =
        std::env::current_exe().map_or_else(|_| PathBuf::from("tulle"), |this| this.with_file_name("tulle"));
    let error = Command::new(&tulle).arg("demo").args(std::env::args_os().skip(1)).exec();
    eprintln!("{}: {error}", tulle.display());
    ExitCode::FAILURE
}
