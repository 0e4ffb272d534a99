//! A way in for callers who come from somewhere, or prove who they are: plaintext on one side, on the other a connection as is
//! asked for.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use crate::{LIMIT, wait_for};

/// How somebody comes to a proxy. The default is from this host, in plaintext.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    /// From which address, and from which port of it; 0: from any.
    pub from: SocketAddr,
    /// As whose connection a proxy in front tells it, by a header of its own.
    pub told: Option<SocketAddr>,
    /// Over TLS.
    pub tls: Option<Hello<'a>>,
}

/// What a client says to begin with TLS.
#[derive(Clone, Debug)]
pub struct Hello<'a> {
    /// The name of the server that it wants.
    pub server: Option<&'a str>,
    /// The protocols that it offers, best first.
    pub alpn: &'a [&'a str],
    /// Whose certificate it shows: one of [`super::CALLERS`], or nobody's.
    pub caller: Option<&'a str>,
}

impl<'a> Hello<'a> {
    /// One for HTTP/1.1 with a server of this name.
    pub fn to(server: &'a str, caller: Option<&'a str>) -> Self {
        Self { server: Some(server), alpn: &["http/1.1"], caller }
    }
}

impl Default for Way<'_> {
    fn default() -> Self {
        Self { from: SocketAddr::from(([127, 0, 0, 1], 0)), told: None, tls: None }
    }
}

/// A door of one caller. Its connections end when it is dropped.
pub(super) struct Door {
    /// Where it takes plaintext.
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Door {
    /// One to `target` by this way. The certificate and the key of a caller are `<caller>.pem` and `<caller>.key` in `folder`.
    pub(super) async fn open(target: SocketAddr, way: &Way<'_>, folder: &Path) -> Self {
        let beyond = Beyond {
            target,
            from: way.from,
            header: way.told.map(|from| header(from, target)),
            tls: way.tls.as_ref().map(|hello| tls(hello, folder)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, beyond.clone()));
            }
        });
        Self { address, task }
    }
}

/// What is on the other side of a door.
#[derive(Clone)]
struct Beyond {
    target: SocketAddr,
    from: SocketAddr,
    header: Option<String>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// The PROXY protocol's, version 1: of where the connection goes it says what is so.
fn header(from: SocketAddr, to: SocketAddr) -> String {
    format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
}

fn tls(hello: &Hello<'_>, folder: &Path) -> (TlsConnector, ServerName<'static>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("the provider has them");
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match hello.caller {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let file = |ending: &str| folder.join(format!("{name}.{ending}"));
            let chain = vec![CertificateDer::from_pem_file(file("pem")).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("they belong together")
        }
    };
    config.alpn_protocols = hello.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config.enable_sni = hello.server.is_some();
    let name = hello.server.unwrap_or("nobody.test").to_owned();
    (TlsConnector::from(Arc::new(config)), ServerName::try_from(name).expect("a name"))
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, beyond: Beyond) -> io::Result<()> {
    // The port may be that of a connection that is about to be gone.
    let connected = wait_for(LIMIT, || connect(beyond.from, beyond.target)).await;
    let mut server = connected.map_err(io::Error::other)?;
    if let Some(header) = &beyond.header {
        server.write_all(header.as_bytes()).await?;
    }
    match beyond.tls {
        None => copy_bidirectional(&mut client, &mut server).await?,
        Some((connector, name)) => {
            let mut server = connector.connect(name, server).await?;
            copy_bidirectional(&mut client, &mut server).await?
        }
    };
    Ok(())
}

async fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream, String> {
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        let stream = socket.connect(to).await?;
        // The next connection may be from the same port.
        stream.set_zero_linger()?;
        Ok(stream)
    };
    connect.await.map_err(|error: io::Error| error.to_string())
}

/// Takes any server: what is looked at is whom the server takes.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
