//! Connections of peers to the application.

use tokio::net::TcpStream;

use super::connection::Connection;
use super::refusal::Refusal;
use crate::io::Stream;

impl Connection {
    /// Serves a connection of a peer. Without a listener it is closed: nothing is ever forwarded before it is known who
    /// may.
    pub(super) async fn inbound(&self, socket: TcpStream) {
        let current = self.worker.current();
        match current.inbound_at(self.destination) {
            Some(listener) => self.follow(socket, &current, listener, SILENCE_LIMIT).await,
            None => {
                self.refused(Refusal::NoListener);
                Stream::from(socket).reset();
            }
        }
    }
}

/// How long a peer may say nothing where nothing can be done for it before it speaks: as long as a handshake may take.
const SILENCE_LIMIT: std::time::Duration = crate::detect::PATIENCE;
