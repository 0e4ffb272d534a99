//! A TCP connection to an endpoint, which may have several addresses.
//!
//! In: addresses in the order in which they are to be tried. Out: the first connection to one of them. The next one is tried
//! when the one before refuses, and also when it has not answered after a while (RFC 8305, as Envoy does); what is not needed
//! any more is given up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::balance::Endpoint;

/// Connects to an endpoint.
///
/// # Errors
/// The last one, when there is no connection to any address.
pub(super) async fn dial(endpoint: &Endpoint) -> io::Result<TcpStream> {
    match &*endpoint.addresses {
        [] => TcpStream::connect(endpoint.address).await,
        // Few endpoints have several, and the others should not carry the room for it.
        addresses => Box::pin(race(addresses)).await,
    }
}

async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut rest = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = rest.next();
        attempts.extend(next.map(|address| TcpStream::connect(*address)));
        let more = rest.len() > 0;
        tokio::select! {
            done = attempts.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = sleep(DELAY), if more => {}
        }
    }
}

/// How long an address has before the next one is tried too: Envoy's.
const DELAY: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses_or_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let good = listener.local_addr().expect("bound");
        let refusing =
            TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        // Its queue is full: a SYN more is not answered.
        let silent =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        silent.listen(0).expect("bound");
        let silent_at = silent.local_addr().expect("bound").as_socket().expect("IPv4");
        let _queued = TcpStream::connect(silent_at).await.expect("there is room for one");
        for addresses in
            [&[good][..], &[refusing, good], &[silent_at, good], &[refusing, silent_at, refusing, good]]
        {
            let stream = race(addresses).await.expect("one answers");
            assert_eq!(stream.peer_addr().expect("connected"), good, "{addresses:?}");
        }
        let refused = race(&[refusing, refusing]).await.expect_err("none answers");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
