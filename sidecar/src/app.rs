//! Puts the parts together: the control thread and the workers.

/// Runs the sidecar until it is told to stop.
pub fn run() {}
