//! The few colours there are, by what they mean. [`super::write`] takes them out where they don't belong.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};

/// What is wrong.
pub fn bad(text: impl Display) -> String {
    with(AnsiColor::Red.on_default().bold(), text)
}

/// What deserves a look.
pub fn doubtful(text: impl Display) -> String {
    with(AnsiColor::Yellow.on_default(), text)
}

/// What is as it should be.
pub fn good(text: impl Display) -> String {
    with(AnsiColor::Green.on_default(), text)
}

/// A title.
pub fn title(text: impl Display) -> String {
    with(Style::new().bold(), text)
}

/// What matters less.
pub fn faint(text: impl Display) -> String {
    with(Style::new().dimmed(), text)
}

fn with(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}
