//! Whether the control plane serves, and what it waits for: what `/ready` says.
//!
//! In: the parts' own word. Out: ready or not, and notes. Once ready it stays so: what it knows is served on while the API
//! server is away, and a note says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What is known of the control plane's health.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    notes: BTreeMap<&'static str, String>,
}

impl Health {
    /// Sidecars are served from now on.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// Notes what a part lacks, or with `None` that it lacks nothing.
    pub fn note(&self, part: &'static str, lacks: Option<String>) {
        let mut state = self.lock();
        match lacks {
            Some(lacks) => state.notes.insert(part, lacks),
            None => state.notes.remove(part),
        };
    }

    /// Whether sidecars are served, and a text with a line for each note.
    pub fn report(&self) -> (bool, String) {
        let state = self.lock();
        let first = if state.started { "ready" } else { "starting" };
        let notes = state.notes.iter().map(|(part, lacks)| format!("{part}: {lacks}\n"));
        (state.started, std::iter::once(format!("{first}\n")).chain(notes).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
