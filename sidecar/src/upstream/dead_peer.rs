//! Notices that the other end of a connection is gone without a word: its host has died, or the link is cut.
//!
//! In: sockets for requests and that to the control plane, and a time. Out: the kernel ends them when what was sent is not acknowledged for that time, or
//! nothing answers its probes. Connections of bytes are not watched, nor those that have become tunnels: on them a peer that
//! takes nothing for a while (a client that shows the first page, a job that waits for a lock) is as it should be, and for
//! the kernel it looks the same. So does a server that takes nothing of an upload over HTTP/1.1 for all that time: such a
//! request ends, too. Connections to this host are not watched: there is no link to be cut.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::connect::KEEPALIVE;

/// For the whole process: how long; zero: as the system has it.
static LIMIT: OnceLock<Duration> = OnceLock::new();

/// Sets the time, once, before anything connects.
pub(crate) fn set_limit(limit: Duration) {
    LIMIT.get_or_init(|| limit);
}

/// Watches the other end of a socket.
pub(crate) fn watch(socket: &TcpStream) -> io::Result<()> {
    let limit = LIMIT.get().copied().unwrap_or_default();
    if limit.is_zero() {
        return Ok(());
    }
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(Some(limit))?;
    // What was acknowledged may never be answered: probes of a connection that is still tell that its other end lives.
    // With the option above the first one without an answer ends it, once the time is over.
    let step = (limit / 3).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(step * 2).with_interval(step))
}

/// No longer watches it where it did, but for the probes of every connection: from now on it carries bytes.
pub(super) fn forget(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    if !matches!(socket.tcp_user_timeout(), Ok(Some(_))) {
        return;
    }
    // Neither can fail on a socket that took the options before; else it is as if it carried requests.
    let _ = socket.set_tcp_user_timeout(None);
    let _ = socket.set_tcp_keepalive(&KEEPALIVE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_watched_until_it_becomes_a_tunnel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let options = || {
            let socket = SockRef::from(&socket);
            (socket.tcp_user_timeout().expect("a socket"), socket.tcp_keepalive_time().expect("a socket"))
        };
        set_limit(Duration::from_secs(30));
        watch(&socket).expect("a socket");
        assert_eq!(options(), (Some(Duration::from_secs(30)), Duration::from_secs(20)));
        forget(&socket);
        assert_eq!(options(), (None, Duration::from_secs(60)));
    }
}
