//! Where connections arrive, and how each comes to what will carry it.
//!
//! In: addresses from the settings, and sockets from them, of which some get what redirection brings. Out: each connection in the hands of the HTTP server or the
//! TCP proxy, with the facts of it that are known by then: who the client proved to be, what it speaks, which chain it
//! matched. No byte goes further before the chain's authorization has let the connection pass, and none is lost while
//! its protocol is found out.

mod accept;
mod chain;
mod connection;
mod follow;
mod http;
mod inbound;
mod original;
mod outbound;
mod place;
mod races;
mod refusal;

pub(crate) use accept::Acceptor;
pub(crate) use connection::{Detached, serve};
pub(crate) use place::{Addresses, BindError, Bound, Place, bind, listen};
pub(crate) use races::Races;
pub(crate) use refusal::Refusals;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
