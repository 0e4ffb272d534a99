//! A bridge with hosts on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::host::Host;
use super::namespace::{Namespace, unique_prefix};

/// A network: a bridge in a namespace of its own, at 10.77.0.1 and fd77::1, where the default routes of its hosts lead.
/// It forwards nothing: what no host answers to is unreachable.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    bridge: Arc<Namespace>,
    last: AtomicU8,
}

/// Which families a host has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Families {
    Both,
    Ipv4,
}

impl Network {
    /// A network without hosts. Any number of them exist at a time, with the same addresses.
    ///
    /// # Panics
    /// When this is not root, or the kernel has no network namespaces.
    pub fn new() -> Self {
        let prefix = unique_prefix();
        let bridge = Namespace::make(format!("{prefix}-bridge"));
        // Snooping would learn who listens to neighbour discovery only after a while.
        bridge.ip("link set lo up\n\
             link add br0 type bridge mcast_snooping 0 stp_state 0\n\
             link set br0 up\n\
             addr add 10.77.0.1/16 dev br0\n\
             addr add fd77::1/64 dev br0 nodad\n");
        Self { prefix, bridge: Arc::new(bridge), last: AtomicU8::new(1) }
    }

    /// A host on it, with the next free address.
    pub fn host(&self, name: &str) -> Host {
        self.make(name, Families::Both)
    }

    /// A host that knows only IPv4, also on its loopback.
    pub fn host_without_ipv6(&self, name: &str) -> Host {
        self.make(name, Families::Ipv4)
    }

    fn make(&self, name: &str, families: Families) -> Host {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (v4, v6) =
            (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()));
        let namespace = Namespace::make(format!("{}-{name}", self.prefix));
        if families == Families::Ipv4 {
            namespace.set("ipv6/conf/all/disable_ipv6", "1");
            namespace.set("ipv6/conf/default/disable_ipv6", "1");
        }
        // Applications serve on port 80 without being root.
        namespace.set("ipv4/ip_unprivileged_port_start", "0");
        // As large as receive buffers get by default, however large this machine's may get: some tests fill all on the way.
        namespace.set("ipv4/tcp_rmem", "4096 131072 6291456");
        let port = format!("p{number}");
        self.bridge.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master br0\n\
             link set {port} up\n",
            namespace.name()
        ));
        namespace.ip(&format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/16 dev eth0\n\
             route add default via 10.77.0.1\n"
        ));
        if families == Families::Both {
            namespace.ip(&format!("addr add {v6}/64 dev eth0 nodad\nroute add default via fd77::1\n"));
        }
        Host::new(name, namespace, self.bridge.clone(), port, v4, v6)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}
