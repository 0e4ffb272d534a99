//! The `tulle-sidecar` program.

fn main() {}
