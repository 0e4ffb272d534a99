//! The pipeline with real sockets: scripted applications on loopback, and requests given to the handler itself.

mod answers;
mod app;
mod chain;
mod harness;
mod hygiene;
mod retries;
mod streams;
