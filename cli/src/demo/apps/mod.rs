//! The bookshop's services: ordinary programs that know nothing of the mesh but, at most, an HTTP proxy and a local port.

mod cart;
mod recommend;
mod stock;
mod web;

use std::net::SocketAddr;

use clap::{Args, Subcommand};
use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// A process of the bookshop.
#[derive(Debug, Args)]
pub struct AppArgs {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Reach the others by their names in a cluster, and serve until a signal says to end: nothing is read from standard
    /// input.
    #[arg(long)]
    in_cluster: bool,
    /// What it is.
    #[command(subcommand)]
    app: App,
}

/// One service of the bookshop.
#[derive(Debug, Subcommand)]
pub enum App {
    /// The shop's page: asks cart and recommend.
    Web,
    /// A customer's cart: asks stock.
    Cart,
    /// Recommendations, over gRPC.
    Recommend,
    /// How many copies are left.
    Stock(Stock),
}

/// How stock behaves.
#[derive(Debug, Args)]
pub struct Stock {
    /// What it calls itself.
    #[arg(long)]
    version: String,
    /// How many of 100 requests fail.
    #[arg(long, default_value_t = 0)]
    failing_percent: u8,
}

/// What a service is told about its surroundings: one line of JSON on standard input, once it has said where it
/// listens. (Its sidecar needs that address before it can say its own.)
#[derive(Debug, Serialize, Deserialize)]
pub struct Surroundings {
    /// The HTTP proxy that other services are reached through; none where their connections are captured.
    pub http_proxy: Option<String>,
    /// Where recommend is, for gRPC: an address or a name, with a port.
    pub recommend: Option<String>,
}

impl AppArgs {
    /// Serves until it is told to end: by a signal in a cluster, and else by the end of standard input, as when the parent
    /// is gone.
    ///
    /// # Errors
    /// When the service can't listen, or is told nonsense.
    pub async fn run(self) -> Result<(), String> {
        let listener = TcpListener::bind(self.listen).await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        println!("{}", serde_json::json!({ "address": address }));
        if self.in_cluster {
            let end = asked_to_end().map_err(|error| error.to_string())?;
            return self.app.serve(listener, &Surroundings::in_cluster(), end).await;
        }
        let mut input = lines_of_stdin();
        let line = input.recv().await.ok_or("nothing on standard input")?;
        let surroundings: Surroundings =
            serde_json::from_str(&line).map_err(|error| format!("standard input: {error}"))?;
        tokio::select! {
            served = self.app.serve(listener, &surroundings, std::future::pending()) => served,
            _ = input.recv() => Ok(()),
        }
    }
}

impl App {
    /// Serves until `end`, and then what was asked before.
    async fn serve(
        self,
        listener: TcpListener,
        surroundings: &Surroundings,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), String> {
        match self {
            Self::Web => web::serve(listener, surroundings, end).await,
            Self::Cart => cart::serve(listener, surroundings, end).await,
            Self::Recommend => recommend::serve(listener, end).await,
            Self::Stock(stock) => stock::serve(listener, stock, end).await,
        }
    }
}

/// Done when the process is asked to end. The first process of a container ends only if it sees to that itself.
fn asked_to_end() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signal = signal(SignalKind::terminate())?;
    Ok(async move {
        signal.recv().await;
    })
}

/// The lines of standard input, read by a thread of its own: it blocks, and must not hold up the end of the runtime.
fn lines_of_stdin() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lines();
        while let Some(Ok(line)) = lines.next() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Surroundings {
    fn in_cluster() -> Self {
        Self { http_proxy: None, recommend: Some("recommend.shop:80".to_owned()) }
    }

    /// A client that sends everything to the proxy where there is one, as any HTTP library does when `http_proxy` is set.
    fn client(&self) -> Result<reqwest::Client, String> {
        match &self.http_proxy {
            Some(proxy) => via_proxy(proxy),
            None => build(reqwest::Client::builder().no_proxy()),
        }
    }
}

/// A client that sends everything to a proxy.
pub(super) fn via_proxy(proxy: &str) -> Result<reqwest::Client, String> {
    let settings = reqwest::Proxy::http(proxy).map_err(|error| format!("{proxy}: {error}"))?;
    build(reqwest::Client::builder().proxy(settings))
}

fn build(client: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    client.build().map_err(|error| error.to_string())
}

/// The headers that a service passes on, so that its calls stay in its caller's trace. This is all that an application
/// has to do for tracing.
fn trace_headers(incoming: &HeaderMap) -> HeaderMap {
    let names = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];
    let kept = names.into_iter().filter_map(|name| Some((name.clone(), incoming.get(&name)?.clone())));
    kept.collect()
}
