//! Finds the chain for a connection, and follows it.
//!
//! Where the configuration leaves no doubt, nothing is waited for. Else the client's first bytes decide. A client that
//! says nothing for [`SILENCE`] may wait for its server to speak first, so the way of bytes is opened meanwhile, and who
//! speaks first decides: the server, and the bytes flow; the client, and its chain is chosen as if it had spoken at
//! once. Where the client may have TLS to speak, it is heard first for a while all the same. An upstream connection that
//! turns out to be of no use has carried nothing. Nobody holds anything for longer
//! than the chain lets connections be idle.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tulle_mesh::model::{TrafficDirection, Transport};

use super::chain::{self, Early, Ends, Facts};
use super::connection::Connection;
use super::refusal::Refusal;
use crate::detect::{Detector, PATIENCE, Spoken};
use crate::http::client_certificate;
use crate::http::proxy::Target;
use crate::http::server::ServerOptions;
use crate::io::{Prefixed, Stream};
use crate::snapshot::{ChainProtocol, Current, Listener, TcpRoutes};
use crate::tcp::{NoUpstream, Route, Upstream};
use crate::tls::{Alpn, ClientTls};
use crate::upstream::HttpVersion;

/// How long a client is waited for before the server may speak first. A client that speaks first has its words under way
/// within a fraction of a millisecond, or two on a busy machine: hardly any connection is opened in vain. And a server
/// that speaks first is heard as much later than without a sidecar, which is far from what anybody notices.
const SILENCE: Duration = Duration::from_millis(5);

/// How long a server's first words are kept back where the client may be about to speak TLS: who gets them in place of a
/// handshake has to connect again, as sidecars do (`MOST_LATE` in `upstream`). A ClientHello is sent as soon as there is a
/// connection, however long the way is, and is hardly ever as late as this. Clients without TLS of servers that speak
/// first wait as long, unless the listener takes nothing else.
const HELLO: Duration = Duration::from_millis(35);

impl Connection {
    /// Finds the chain of `listener` for the connection, and follows it to the end. A client is given up when it says
    /// nothing for `silence` and nothing can be done for it before it does.
    pub(super) async fn follow(
        &self,
        mut socket: TcpStream,
        current: &Current,
        listener: &Arc<Listener>,
        silence: Duration,
    ) {
        let model = &listener.model;
        let mut detector = Detector::looking_for(model.tls_inspector, model.looks_for_http());
        let behind;
        let connection = match model.proxy_protocol {
            None => self,
            Some(how) => {
                let told = self.while_idle(silence, detector.proxied(&mut socket, how)).await;
                let Some(Ok(client)) = told else {
                    if let Some(Err(error)) = told {
                        tracing::debug!(client = %self.client, %error, "a connection does not say whose it is");
                    }
                    self.refused(Refusal::Unproxied);
                    return Stream::from(socket).reset();
                };
                behind = self.of(client);
                &behind
            }
        };
        connection.detected(socket, detector, current, listener, silence).await;
    }

    /// Finds the chain by what the client says.
    async fn detected(
        &self,
        mut socket: TcpStream,
        mut detector: Detector,
        current: &Current,
        listener: &Arc<Listener>,
        silence: Duration,
    ) {
        match chain::undisputed(&listener.model, &self.ends()) {
            Early::Takes(index) => {
                return self.undisputed((socket, detector), current, listener, index, silence).await;
            }
            Early::Refused => {
                self.refused(Refusal::NoChain);
                return Stream::from(socket).reset();
            }
            Early::Disputed => {}
        }
        let at_once = tokio::time::timeout(SILENCE, detector.detect(&mut socket)).await;
        let spoken = match (at_once, self.silent_chain(listener)) {
            (Ok(spoken), _) => Some(spoken),
            (Err(_), Some((index, routes))) if detector.is_silent() => {
                return self.race(socket, detector, current, listener, index, routes).await;
            }
            (Err(_), _) => self.while_idle(silence, detector.detect(&mut socket)).await,
        };
        match spoken {
            Some(Ok(spoken)) => {
                self.spoken((socket, detector), &spoken, current, listener).await;
            }
            Some(Err(error)) => tracing::debug!(client = %self.client, %error, "the client left"),
            None => self.refused(Refusal::Silent),
        }
    }

    async fn undisputed(
        &self,
        (socket, detector): (TcpStream, Detector),
        current: &Current,
        listener: &Arc<Listener>,
        index: usize,
        silence: Duration,
    ) {
        match &listener.chains[index].protocol {
            ChainProtocol::Http(routes) if listener.model.chains[index].tls.is_none() => {
                if let Err(refusal) = self.authorize(&listener.chains[index], false, None, None) {
                    self.refused(refusal);
                    return Stream::from(socket).reset();
                }
                let options = ServerOptions::from(&routes.settings);
                self.http_only((socket, detector), self.target(listener, index), &options, silence).await;
            }
            _ => {
                let stream = detector.into_stream(socket);
                self.enter(stream, None, None, current, listener, index).await;
            }
        }
    }

    /// The chain for clients that speak neither TLS nor HTTP, where its bytes can be carried before they have spoken.
    fn silent_chain<'a>(&self, listener: &'a Listener) -> Option<(usize, &'a TcpRoutes)> {
        let index = self.choose(listener, &Spoken::Other)?;
        match &listener.chains[index].protocol {
            ChainProtocol::Tcp(routes) if listener.model.chains[index].tls.is_none() => Some((index, routes)),
            _ => None,
        }
    }

    /// Connects upstream while the client says nothing, and sees who speaks first.
    async fn race(
        &self,
        mut socket: TcpStream,
        mut detector: Detector,
        current: &Current,
        listener: &Arc<Listener>,
        index: usize,
        routes: &TcpRoutes,
    ) {
        if let Err(refusal) = self.authorize(&listener.chains[index], false, None, None) {
            self.refused(refusal);
            return Stream::from(socket).reset();
        }
        let session = self.session(None);
        let Some(route) = Route::draw(routes, &session) else {
            return Stream::from(socket).reset();
        };
        let races = &self.worker.races;
        let outcome = {
            let mut connect = std::pin::pin!(route.connect(&self.worker, current.tls.as_ref()));
            let mut upstream: Option<Upstream> = None;
            let may_be_tls = listener.model.chains.iter().any(|chain| chain.tls.is_some());
            let hello_by = may_be_tls.then(|| Instant::now() + HELLO);
            let race = async {
                loop {
                    let Some(upstream) = &mut upstream else {
                        tokio::select! {
                            spoken = detector.detect(&mut socket) => return First::Client(spoken),
                            connected = &mut connect => match connected {
                                Ok(connected) => upstream = Some(connected),
                                Err(error) => return First::Refused(error),
                            },
                        }
                        continue;
                    };
                    tokio::select! {
                        spoken = detector.detect(&mut socket) => return First::Client(spoken),
                        () = upstream.speaks() => {}
                    }
                    let Some(hello_by) = hello_by else { return First::Server };
                    return match timeout_at(hello_by, detector.detect(&mut socket)).await {
                        Ok(spoken) => First::Client(spoken),
                        Err(_) if detector.is_silent() => First::Server,
                        Err(_) => First::Client(detector.detect(&mut socket).await),
                    };
                }
            };
            let limit = route.silence().unwrap_or(Duration::MAX);
            let Some(first) = self.while_idle(limit, race).await else {
                self.refused(Refusal::Silent);
                return Stream::from(socket).reset();
            };
            match first {
                First::Client(Err(error)) => {
                    return tracing::debug!(client = %self.client, %error, "the client left");
                }
                First::Client(Ok(spoken)) if self.choose(listener, &spoken) != Some(index) => {
                    races.unused.increment();
                    Raced::Elsewhere(spoken)
                }
                First::Client(Ok(_)) | First::Server => {
                    let who = if matches!(first, First::Server) { &races.server } else { &races.client };
                    who.increment();
                    Raced::Here(match upstream {
                        Some(upstream) => Ok(upstream),
                        None => connect.await,
                    })
                }
                First::Refused(error) => Raced::Here(Err(error)),
            }
        };
        // From here on, what was opened in vain is closed: its server would have it for as long as the client stays.
        let connected = match outcome {
            Raced::Elsewhere(spoken) => {
                return self.spoken((socket, detector), &spoken, current, listener).await;
            }
            Raced::Here(connected) => connected,
        };
        let mut client = Stream::Tcp(detector.into_stream(socket));
        let ending = match connected {
            Ok(upstream) => session.carry(&mut client, &route, upstream).await,
            Err(error) => session.refuse(&route, &error),
        };
        ending.apply(client);
    }

    /// Follows the chain for what the client speaks.
    async fn spoken(
        &self,
        (mut socket, mut detector): (TcpStream, Detector),
        spoken: &Spoken,
        current: &Current,
        listener: &Arc<Listener>,
    ) {
        let Some(index) = self.choose(listener, spoken) else {
            self.refused(match spoken {
                Spoken::Unfinished => Refusal::Silent,
                _ => Refusal::NoChain,
            });
            return Stream::from(socket).reset();
        };
        let version = match (super::http::version(spoken), &listener.chains[index].protocol) {
            // Nobody has asked which HTTP it is.
            (None, ChainProtocol::Http(_))
                if *spoken == Spoken::Other && listener.model.chains[index].tls.is_none() =>
            {
                let said = self.while_idle(PATIENCE, detector.http_version(&mut socket)).await;
                let Some(Ok(version)) = said else { return };
                version
            }
            (version, _) => version,
        };
        let stream = detector.into_stream(socket);
        let server_name = match spoken {
            Spoken::Tls(hello) => hello.server_name.as_deref().map(Arc::from),
            _ => None,
        };
        self.enter(stream, version, server_name, current, listener, index).await;
    }

    /// Follows a chain: ends its TLS, asks its policies, and hands over to what it carries.
    async fn enter(
        &self,
        stream: Prefixed,
        version: Option<HttpVersion>,
        server_name: Option<Arc<str>>,
        current: &Current,
        listener: &Arc<Listener>,
        index: usize,
    ) {
        let tls = listener.model.chains[index].tls.as_ref();
        let mut opened = match self.open(stream, tls, server_name, current).await {
            Ok(opened) => opened,
            Err(refusal) => return self.refused(refusal),
        };
        let chain = &listener.chains[index];
        let (identity, server_name) = (opened.identity.as_ref(), opened.server_name.as_deref());
        if let Err(refusal) = self.authorize(chain, opened.stream.is_tls(), identity, server_name) {
            self.refused(refusal);
            return opened.stream.reset();
        }
        match &chain.protocol {
            ChainProtocol::Http(routes) => {
                let agreed = opened.alpn.map(|alpn| match alpn {
                    Alpn::Http1 => HttpVersion::Http1,
                    Alpn::Http2 => HttpVersion::Http2,
                });
                // Whatever is no HTTP at all gets its 400 from the HTTP/1 server.
                let version = agreed.or(version).unwrap_or(HttpVersion::Http1);
                let told = &routes.settings.client_certificate;
                if let (Stream::TlsServer(tls), Some(own)) = (&opened.stream, &current.tls) {
                    let tls = tls.get_ref().1;
                    let chain = tls.peer_certificates().unwrap_or_default();
                    opened.certificate = client_certificate::describe(told, chain, &own.identity);
                    opened.tls_facts = routes.tells_tls.then(|| Box::new(ClientTls::of(tls, &own.identity)));
                }
                let options = ServerOptions::from(&routes.settings);
                self.http(opened, version, self.target(listener, index), &options).await;
            }
            ChainProtocol::Tcp(routes) => {
                let session = self.session(opened.identity.as_ref());
                session.run(opened.stream, routes, current.tls.as_ref()).await;
            }
        }
    }

    fn choose(&self, listener: &Listener, spoken: &Spoken) -> Option<usize> {
        let offered: Vec<&str>;
        let (transport, server_name, protocols) = match spoken {
            Spoken::Tls(hello) => {
                offered = hello.alpn.iter().map(String::as_str).collect();
                (Transport::Tls, hello.server_name.as_deref(), &offered[..])
            }
            _ if !listener.model.http_inspector => (Transport::Plaintext, None, &[][..]),
            Spoken::Http10 => (Transport::Plaintext, None, &["http/1.0"][..]),
            Spoken::Http1 => (Transport::Plaintext, None, &["http/1.1"][..]),
            Spoken::Http2 => (Transport::Plaintext, None, &["h2c"][..]),
            Spoken::Other | Spoken::Unfinished | Spoken::Nothing => (Transport::Plaintext, None, &[][..]),
        };
        let facts = Facts { ends: self.ends(), transport, server_name, protocols };
        chain::choose(&listener.model, &facts)
    }

    fn ends(&self) -> Ends {
        Ends { destination: self.destination, direct: self.direct, source: self.client }
    }

    fn target(&self, listener: &Listener, chain: usize) -> Target {
        match self.direction() {
            TrafficDirection::Inbound => Target::Application { address: self.destination, chain },
            TrafficDirection::Outbound => Target::Service(listener.name.clone()),
        }
    }
}

/// Where a client that had said nothing goes.
enum Raced {
    /// Where its silence would have led, if there is a connection.
    Here(Result<Upstream, NoUpstream>),
    /// Where its words lead.
    Elsewhere(Spoken),
}

/// Who spoke first.
enum First {
    Client(std::io::Result<Spoken>),
    Server,
    /// Nobody: there is no server to speak.
    Refused(NoUpstream),
}
