//! What the sidecar is told at its start: a YAML file, the environment and flags.
