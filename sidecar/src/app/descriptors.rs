//! File descriptors: as many as the system lets the process have.
//!
//! A connection that is carried takes two of them, and 1024 is a usual limit to start with, made for programs that can't deal
//! with more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it goes, and says how far that is. At the limit new connections wait, and the log says so.
pub(super) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let now = match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "can't raise the limit of file descriptors");
            current
        }
    };
    match now {
        Some(descriptors) => tracing::info!(descriptors, "each connection takes two file descriptors"),
        None => tracing::info!("there is no limit of file descriptors"),
    }
}
