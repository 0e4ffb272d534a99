//! What commands print: one place for formats, tables, colours and errors.
//!
//! In: an answer as a value, and a way to show it to people. Out: text on standard output, as a table, JSON or YAML, and
//! the exit code. Colours are for terminals only: a pipe, a file, `NO_COLOR` or `TERM=dumb` gets none. Nothing else in
//! this crate writes colours.

pub mod style;
pub mod table;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// The flag that every command with an answer has.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How the answer is printed.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// Prints an answer; `table` writes it for people.
///
/// # Errors
/// When standard output can't be written.
pub fn print<T: Serialize>(
    format: Format,
    answer: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(answer),
        Format::Json => serde_json::to_string_pretty(answer).map_err(Failure::new)? + "\n",
        Format::Yaml => serde_saphyr::to_string(answer).map_err(Failure::new)?,
    };
    write(&text)
}

/// Writes text to standard output, without its colours where they don't belong.
///
/// # Errors
/// When it can't be written; a reader that has seen enough (`| head`) is no error.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// One that ends the program with status 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 1 }
    }

    /// One that is due to how the command was called: status 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 2 }
    }

    /// One that ends the program with a status of the command's own.
    pub fn with(code: u8, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code }
    }

    /// Says why on standard error.
    pub fn report(&self) -> ExitCode {
        // There is nobody left to tell when standard error is gone.
        let _ = writeln!(anstream::stderr(), "{} {}", style::bad("error:"), self.message);
        ExitCode::from(self.code)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
