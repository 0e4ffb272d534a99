//! Ports for programs that can't choose one themselves.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Below those that the kernel gives to whoever asks for any (32768 and above), connections included.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port of loopback that nobody has. Nobody gets it by chance before it is taken, and each call gives another.
pub fn free_port() -> u16 {
    // Processes that run at the same time begin at different places.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..COUNT)));
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Relaxed) % COUNT;
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port));
        let taken = v6.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        if !taken && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("all ports from {FIRST} are taken");
}
