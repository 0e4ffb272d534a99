//! HTTP: from a connection's bytes to requests, through the pipeline, and back.

pub(crate) mod body;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod proxy;
pub(crate) mod refusal;
pub(crate) mod server;
pub(crate) mod upgrade;
