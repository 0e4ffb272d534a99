//! The log: lines on standard error, whose level can be changed while the sidecar runs.

use std::io;
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes what is logged.
pub(crate) struct LogControl {
    filter: reload::Handle<Targets, Registry>,
    level: Mutex<LogLevel>,
}

impl LogControl {
    /// Starts to log. Where this process logs already (in a test, say), that stays as it is.
    pub(crate) fn start(settings: &Log) -> Self {
        let (filter, handle) = reload::Layer::new(settings.level.targets().clone());
        let lines = fmt::layer().with_writer(io::stderr);
        let lines = match settings.format {
            LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        // The only error is that there is a log already.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Self { filter: handle, level: Mutex::new(settings.level.clone()) }
    }

    /// What is logged.
    pub(crate) fn level(&self) -> LogLevel {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs what `level` says from now on.
    ///
    /// # Errors
    /// When this process logs in another way.
    pub(crate) fn set(&self, level: LogLevel) -> Result<(), String> {
        self.filter.reload(level.targets().clone()).map_err(|error| error.to_string())?;
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
        Ok(())
    }
}
