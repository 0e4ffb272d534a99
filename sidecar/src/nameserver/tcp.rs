//! Queries in streams (RFC 7766): several at a time on one connection, each answered when its answer is there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::message::MAX_QUERY;
use super::{Nameserver, Transport};

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 128;
/// The most queries of one connection that are being answered at a time; the next one waits to be read.
const MAX_PIPELINED: usize = 16;
/// How long a connection may be without a query.
const IDLE: Duration = Duration::from_secs(10);
/// How long a query may take to arrive, and an answer to be taken.
const SLOW: Duration = Duration::from_secs(3);

/// Answers what comes, for ever.
pub(super) async fn serve(listener: TcpListener, server: Arc<Nameserver>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
            server.metrics.connections.increment();
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            converse(stream, server).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, server: Arc<Nameserver>) {
    let (read, write) = stream.into_split();
    let (answers, ready) = mpsc::channel(MAX_PIPELINED);
    // When either side ends, the other one does: without a reader there is nobody to write to, and the other way round.
    let ((), written) = tokio::join!(listen(read, answers, &server), reply(write, ready));
    if written.is_err() {
        server.metrics.slow.increment();
    }
}

async fn listen(mut read: OwnedReadHalf, answers: mpsc::Sender<Vec<u8>>, server: &Arc<Nameserver>) {
    loop {
        let length = match timeout(IDLE, read.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(_)) | Err(_) => return,
        };
        if length > MAX_QUERY {
            server.metrics.oversized.increment();
            return;
        }
        let mut query = vec![0; length];
        match timeout(SLOW, read.read_exact(&mut query)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(_) => return server.metrics.slow.increment(),
        }
        // A client that does not read its answers waits here, and not in memory.
        let Ok(slot) = answers.clone().reserve_owned().await else { return };
        let Some(place) = server.place() else { return };
        let server = Arc::clone(server);
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&query, Transport::Tcp).await {
                slot.send(answer);
            }
            drop(place);
        });
    }
}

async fn reply(mut write: OwnedWriteHalf, mut answers: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes()[..], &answer].concat();
        timeout(SLOW, write.write_all(&message)).await??;
    }
    Ok(())
}

/// Without a free descriptor the next try fails as well; it must not take all of the thread.
const AFTER_ERROR: Duration = Duration::from_millis(50);
