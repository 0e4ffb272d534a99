//! What is between the sidecar and its control plane: it may let only a part of what is said through, and then nothing more, without
//! an end that anybody would see.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A valve. Its connections end when it is dropped.
pub struct Valve {
    /// Where it is connected to.
    pub address: SocketAddr,
    opened: Arc<AtomicU64>,
    shut: watch::Sender<Option<Shut>>,
    task: JoinHandle<()>,
}

/// Of the connections up to one, only so many bytes more come from the server.
#[derive(Clone, Copy)]
struct Shut {
    last: u64,
    bytes: usize,
}

impl Valve {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (shut, told) = watch::channel(None);
        let opened = Arc::new(AtomicU64::new(0));
        let count = opened.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                let told = told.clone();
                connections.spawn(async move {
                    // Where nobody listens behind it, it ends as it would there.
                    if let Ok(server) = TcpStream::connect(target).await {
                        let _ = carry(client, server, number, told).await;
                    }
                });
            }
        });
        Self { address, opened, shut, task }
    }

    /// How many connections were made through it.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Lets so many bytes of the server through on the connections that are there, and then nothing in either direction. Those that
    /// come later are not held.
    pub fn shut_after(&self, bytes: usize) {
        self.shut.send_replace(Some(Shut { last: self.opened(), bytes }));
    }
}

impl Drop for Valve {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    number: u64,
    mut told: watch::Receiver<Option<Shut>>,
) -> io::Result<()> {
    let (mut up, mut down) = (vec![0; 1 << 14], vec![0; 1 << 14]);
    let mut left = None;
    loop {
        let most = left.unwrap_or(down.len()).min(down.len());
        if most == 0 {
            // Both ends stay open, and whatever they say stays where it is.
            return std::future::pending().await;
        }
        tokio::select! {
            changed = told.changed(), if left.is_none() => {
                if changed.is_err() {
                    return Ok(());
                }
                let shut = *told.borrow();
                left = shut.filter(|shut| number <= shut.last).map(|shut| shut.bytes);
            }
            read = client.read(&mut up) => match read? {
                0 => return Ok(()),
                read => server.write_all(&up[..read]).await?,
            },
            read = server.read(&mut down[..most]) => match read? {
                0 => return Ok(()),
                read => {
                    client.write_all(&down[..read]).await?;
                    left = left.map(|left| left - read);
                }
            },
        }
    }
}
