//! Hosts in network namespaces: what only several machines can show. Needs root.

mod network;
mod redirect;
