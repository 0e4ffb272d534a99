//! HTTP/1 on the wire, for both ends: the server of [`super::server`] and the client of [`crate::upstream`].
//!
//! In: a [`Stream`](crate::io::Stream)'s bytes. Out: heads and body frames, and the same back into bytes. What can be
//! read in two ways is refused, never repaired: whoever is behind might read it in the other. Bodies are slices of
//! what was read, never copied; nothing here waits, spawns or keeps more than the bounds below.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod framing;
pub(crate) mod head;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod transport;
