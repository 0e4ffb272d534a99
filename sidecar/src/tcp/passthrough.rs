//! Connections to destinations that the mesh does not know, where policy lets them through.
//!
//! In: a name and a port as the application gave them, or the address that it dialled. Out: the same bytes there, in plaintext as
//! the application sends them, and counted apart from the mesh's own traffic.

use std::fmt;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tulle_mesh::address::ServicePort;
use tulle_mesh::model::TrafficDirection;

use super::copy::relay;
use super::{DEFAULT_IDLE_TIMEOUT, Ending, Session};
use crate::dns::Lookups;
use crate::io::Stream;
use crate::telemetry::metrics::HttpLabels;
use crate::telemetry::record::{ConnectionRecord, Failure};
use crate::upstream::{DEFAULT_CONNECT_TIMEOUT, prepare};

/// The service under which they are counted.
pub(crate) const SERVICE: &str = "passthrough";

/// A destination outside the mesh.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outside<'a> {
    /// A name, and a port of each address that it resolves to.
    Name(&'a ServicePort),
    /// The address that the application dialled.
    Address(SocketAddr),
}

impl fmt::Display for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Session<'_> {
    /// Carries a connection to `destination` from its start to its end.
    pub(crate) async fn pass_through(&self, mut client: Stream, destination: Outside<'_>) {
        let series = self.worker.telemetry.metrics.tcp(HttpLabels {
            direction: TrafficDirection::Outbound,
            service: SERVICE.into(),
            route: "".into(),
            backend: SERVICE.into(),
        });
        let mut record = self.record(&series, None);
        record.cluster = SERVICE;
        let mut details = String::new();
        let ending = match dial(&self.worker.lookups, destination).await {
            Ok((socket, address)) => {
                let mut stream = Stream::from(socket);
                let relayed = relay(&mut client, &mut stream, Vec::new(), Some(DEFAULT_IDLE_TIMEOUT)).await;
                record = ConnectionRecord {
                    received: relayed.forward,
                    sent: relayed.back,
                    spliced: relayed.spliced,
                    endpoint: Some(address),
                    error: relayed.end.failure(&mut details),
                    ..record
                };
                let ending = Ending::of(&relayed.end);
                if ending == Ending::Reset {
                    stream.reset();
                }
                ending
            }
            Err(error) => {
                details = format!("{destination}: {error}");
                record.error =
                    Some(Failure { token: "destination_unavailable", flags: "UF", details: &details });
                Ending::Reset
            }
        };
        record.duration = self.begun.elapsed();
        self.worker.telemetry.connection(&record);
        ending.apply(client);
    }
}

/// Connects to the first address of `destination` that answers.
async fn dial(lookups: &Lookups, destination: Outside<'_>) -> Result<(TcpStream, SocketAddr), String> {
    let connect = async {
        let addresses = match destination {
            Outside::Name(name) => {
                let found = lookups.resolve(&name.fqdn).await.map_err(|error| error.to_string())?;
                found.into_iter().map(|ip| SocketAddr::new(ip, name.port)).collect()
            }
            Outside::Address(address) => vec![address],
        };
        let mut last = String::new();
        for address in addresses {
            let socket = TcpStream::connect(address).await;
            match socket.and_then(|socket| prepare(&socket).map(|()| socket)) {
                Ok(socket) => return Ok((socket, address)),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    };
    let limit = tokio::time::timeout(DEFAULT_CONNECT_TIMEOUT, connect).await;
    limit.unwrap_or_else(|_| Err(format!("no connection within {DEFAULT_CONNECT_TIMEOUT:?}")))
}
