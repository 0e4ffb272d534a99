//! The client against a scripted control plane.
