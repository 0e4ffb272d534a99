//! Tcp.
