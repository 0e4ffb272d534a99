//! Hosts in network namespaces: several machines' networks on this one.
//!
//! In: names of hosts. Out: a network of its own for each test, a bridge with hosts on it, each with its loopback, its
//! addresses of both families and its default routes; processes and sockets inside of them; links that are cut, mended,
//! slow or lossy; the packets on a link. It needs root, and says so. It must never touch the network of the machine
//! itself, and never leave anything behind: what a killed run could not remove is removed by the next one.

mod capture;
mod host;
mod lookup;
mod mesh;
mod namespace;
mod network;
mod placed;
mod wire;

pub use capture::{Capture, Packets};
pub use host::{APP_UID, Host, Server};
pub use mesh::{Hosts, Member, Meshed, SIDECAR_UID, redirect, redirect_with};
pub use network::Network;
pub use placed::on_hosts;
pub use wire::Wire;
