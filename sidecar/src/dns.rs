//! Dns.
