//! Queries in datagrams.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::message::MAX_QUERY;
use super::{Nameserver, Transport};

/// Answers what comes, for ever.
pub(super) async fn serve(socket: UdpSocket, server: Arc<Nameserver>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a datagram could not be received");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        if length > MAX_QUERY {
            server.metrics.oversized.increment();
            continue;
        }
        // Who gets no answer asks again.
        let Some(place) = server.place() else { continue };
        let query = buffer[..length].to_vec();
        let (socket, server) = (Arc::clone(&socket), Arc::clone(&server));
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&query, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%error, "an answer could not be sent");
            }
            drop(place);
        });
    }
}

/// An error may hold for a while; it must not take all of the thread.
const AFTER_ERROR: Duration = Duration::from_millis(50);
