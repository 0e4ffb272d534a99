//! Whether and when a request is tried again.

pub(crate) mod budget;
