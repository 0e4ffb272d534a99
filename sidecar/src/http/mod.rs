//! HTTP: from a connection's bytes to requests, through the pipeline, and back.

mod accounted;
pub(crate) mod body;
pub(crate) mod client_certificate;
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
mod problem;
pub(crate) mod proxy;
pub(crate) mod refusal;
pub(crate) mod request_id;
mod respond;
pub(crate) mod server;
mod server_header;
mod session;
pub(crate) mod upgrade;
mod words;

pub(crate) use fault::Active;
pub(crate) use headers::authority;

#[cfg(test)]
mod tests;
