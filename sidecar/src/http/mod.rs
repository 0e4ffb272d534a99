//! HTTP: from a connection's bytes to requests, through the pipeline, and back.

mod accounted;
pub(crate) mod body;
mod connect;
mod cors;
mod deadline;
mod destination;
mod draw;
mod exchange;
mod fault;
mod forward;
mod forwarded;
pub(crate) mod h1;
pub(crate) mod h2;
mod hash;
mod headers;
mod mirror;
mod pace;
mod paths;
pub(crate) mod proxy;
pub(crate) mod refusal;
mod respond;
pub(crate) mod server;
mod session;
pub(crate) mod upgrade;
mod words;

pub(crate) use fault::Active;

#[cfg(test)]
mod tests;
