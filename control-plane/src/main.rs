//! The control plane as a program: see [`tulle_control_plane::args`].

use std::process::ExitCode;

use clap::Parser;
use tulle_control_plane::args::Cli;

fn main() -> ExitCode {
    // A usage error ends here, with exit code 2.
    let cli = Cli::parse();
    match tulle_control_plane::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-control-plane: {error}");
            ExitCode::from(1)
        }
    }
}
