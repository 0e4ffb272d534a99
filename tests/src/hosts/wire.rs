//! A wire between a test and a host: a port here that is a connection there, or the other way round.
//!
//! In: a connection at one end. Out: a connection at the other, with the same bytes, the end of each direction, and
//! resets. It carries what a test does to a host, as a terminal would; never anything between two hosts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::host::Host;

/// A wire. Cut when dropped.
#[derive(Debug)]
pub struct Wire {
    /// The end that takes connections.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Wire {
    /// A port of this machine's loopback; each connection to it is made from `host` to what `target` says then.
    pub async fn into<F>(host: &Host, target: impl Fn(Host) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<SocketAddr>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let host = host.clone();
        Self::new(listener, move || {
            let target = target(host.clone());
            let host = host.clone();
            async move { host.connect(target.await?).await }
        })
    }

    /// A port of this machine's loopback that stands for an address that `host` reaches.
    pub async fn to(host: &Host, target: SocketAddr) -> Self {
        Self::into(host, move |_| std::future::ready(Ok(target))).await
    }

    /// A port of `host` that stands for an address of this machine.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn out_of(host: &Host, listen: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(host.listen(listen)?, move || TcpStream::connect(target)))
    }

    /// A port of `host` that stands for the first of some addresses of this machine where somebody listens, as a Service
    /// stands for its pods; the list may change.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn service(
        host: &Host,
        listen: SocketAddr,
        targets: Arc<Mutex<Vec<SocketAddr>>>,
    ) -> io::Result<Self> {
        Ok(Self::new(host.listen(listen)?, move || {
            let targets = targets.lock().expect("nothing panics with it").clone();
            async move { TcpStream::connect(&*targets).await }
        }))
    }

    fn new<F>(listener: TcpListener, dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<TcpStream>> + Send + 'static,
    {
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let dialled = dial();
                tokio::spawn(async move {
                    match dialled.await {
                        Ok(far) => carry(near, far).await,
                        Err(_) => reset(&near),
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// As much as a wire's own end of a connection may hold in each direction, in bytes: little, so that a test that fills all
/// buffers on the way fills those of the mesh; and many segments of loopback (64 KiB), so that none waits for a window.
const BUFFER: usize = 1 << 20;

/// Both directions, until both have ended or one has broken.
async fn carry(mut near: TcpStream, mut far: TcpStream) {
    for stream in [&near, &far] {
        let socket = socket2::SockRef::from(stream);
        let bounded = socket.set_send_buffer_size(BUFFER).and_then(|()| socket.set_recv_buffer_size(BUFFER));
        bounded.expect("a socket has buffers");
    }
    if copy_bidirectional(&mut near, &mut far).await.is_err() {
        reset(&near);
        reset(&far);
    }
}

/// Lets the end of a connection be a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
