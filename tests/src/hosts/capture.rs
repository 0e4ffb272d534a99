//! The packets on a device, as tcpdump writes them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;

use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use super::host::Host;
use crate::{LIMIT, wait_for};

/// A capture under way.
pub struct Capture<'a> {
    host: &'a Host,
    loopback: bool,
    file: NamedTempFile,
    child: Child,
}

/// What passed.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
}

impl<'a> Capture<'a> {
    pub(super) async fn start(host: &'a Host, device: &str) -> Self {
        let file = NamedTempFile::new().expect("a file");
        let mut command = host.command(0, "tcpdump");
        command.args(["-i", device, "-Z", "root", "-U", "--immediate-mode", "-w"]).arg(file.path());
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("tcpdump: {error}; run tests/setup"));
        let stderr = child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let listens = async {
            let mut words = String::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("listening on") {
                    return;
                }
                words.push_str(&line);
            }
            panic!("tcpdump: {words}");
        };
        timeout(LIMIT, listens).await.expect("tcpdump starts in time");
        Self { host, loopback: device == "lo", file, child }
    }

    /// Ends it. Everything that passed before this call is in it.
    pub async fn end(mut self) -> Packets {
        // A packet that is told from all others comes last: once it is there, so is the rest.
        let last = format!("the last packet {:x}", fastrand::u128(..));
        let (from, to) = if self.loopback {
            (Ipv4Addr::LOCALHOST, IpAddr::from(Ipv4Addr::LOCALHOST))
        } else {
            (self.host.v4, Ipv4Addr::new(10, 77, 0, 1).into())
        };
        let socket = self.host.udp((IpAddr::from(from), 0)).expect("a port");
        let complete = || async {
            // Nobody listens at port 9, which is nothing that this socket needs to know.
            let _ = socket.send_to(last.as_bytes(), (to, 9)).await;
            let packets = Packets { bytes: std::fs::read(self.file.path()).expect("tcpdump's file") };
            if packets.contain(&last) { Ok(packets) } else { Err("the capture is not complete".to_owned()) }
        };
        let packets = wait_for(LIMIT, complete).await.unwrap_or_else(|error| panic!("{error}"));
        let _ = self.child.kill().await;
        packets
    }
}

impl Packets {
    /// Whether a text stands in the clear in any packet. It is not put together from several: look for something short
    /// that was sent in one piece.
    pub fn contain(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}
