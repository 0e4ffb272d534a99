//! `tulle demo`: a bookshop on this machine, every service with a sidecar of its own.
//!
//! In: how long it runs and where else traces go. Out: a live table of every edge, one trace as a tree, and whether the
//! mesh did what it promises. All of it are real processes; the demo only starts them, sends requests as a customer
//! would, and reads what any user can read: metrics pages and spans.

pub mod apps;
pub mod edges;
pub mod jaeger;
mod shop;
mod table;
pub mod traces;
pub mod verdict;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::local::Binaries;
use edges::Edge;
use jaeger::Jaeger;
use shop::Shop;
pub use shop::{MANIFESTS, TRACED};
use traces::Traces;

/// What the demo does.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Run for this many seconds, then check what the mesh promises, and end with status 1 if any of it did not hold.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Send traces to this OTLP/gRPC endpoint too, such as Jaeger's http://127.0.0.1:4317.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Start Jaeger too, and send traces there. The program is looked for by its name, jaeger, where none is given.
    #[arg(
        long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "jaeger",
        conflicts_with = "otlp"
    )]
    pub jaeger: Option<PathBuf>,
    /// How many requests per second the customers send.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rate: u32,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle demo                              until Ctrl-C; edit the manifests in the folder that it prints
  tulle demo --jaeger                     with Jaeger, if it is installed
  tulle demo --otlp http://127.0.0.1:4317   with one that runs already
  tulle demo --seconds 20                 unattended; status 1 if a promise was not kept";

/// How long a promise may still come true after the last second, for spans under way.
const SETTLE: Duration = Duration::from_secs(5);

/// Runs the demo until its time is over or Ctrl-C.
///
/// # Errors
/// When something does not start, or a promise did not hold.
pub async fn run(args: DemoArgs) -> Result<(), String> {
    let binaries = Binaries::beside_this()?;
    let folder =
        tempfile::Builder::new().prefix("tulle-demo-").tempdir().map_err(|error| error.to_string())?;
    let opening = async {
        let jaeger = match &args.jaeger {
            Some(program) => Some(Jaeger::start(&jaeger::find(program)?, folder.path()).await?),
            None => None,
        };
        let elsewhere = jaeger.as_ref().map(|jaeger| &jaeger.otlp).or(args.otlp.as_ref());
        let (traces, collector) = Traces::collect(elsewhere.map(String::as_str)).await?;
        Ok::<_, String>((Shop::open(binaries, folder.path(), &collector).await?, traces, jaeger))
    };
    println!("Starting a control plane, {} services and {} sidecars ...", shop::SERVICES, shop::SIDECARS);
    let interrupt = interrupt();
    tokio::pin!(interrupt);
    let (shop, traces, jaeger) = tokio::select! {
        opened = opening => opened?,
        signal = &mut interrupt => return signal,
    };
    println!("Open. Edit the manifests while it runs: {}", shop.manifests().display());
    if let Some(jaeger) = &jaeger {
        println!("See one request in five in Jaeger: {}/search?service=web", jaeger.query);
    }

    let customers = shop.customers(args.rate)?;
    let interrupted = tokio::select! {
        watched = watch(&shop, args.seconds) => watched.map(|()| false),
        signal = &mut interrupt => signal.map(|()| true),
    };
    customers.abort();
    let interrupted = interrupted?;

    let edges = shop.edges().await?;
    // Who ends it early does not want to wait for the last spans.
    let promises = if interrupted {
        None
    } else {
        Some(verdict::check(&edges, shop.unproven().await, &traces, SETTLE).await)
    };
    println!("{}", table::of(&edges, None));
    if let Some(spans) = traces.joined(shop::TRACED) {
        println!("One request, from span to span:\n\n{}", traces::tree(&spans));
    }
    let Some(promises) = promises else { return Ok(()) };
    let (report, kept) = verdict::report(&promises);
    print!("{report}");
    if kept {
        return Ok(());
    }
    Err(format!("a promise was not kept; the logs are in {}", folder.keep().join("logs").display()))
}

/// Waits for Ctrl-C, or for whatever else should end the demo with all its processes.
async fn interrupt() -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Shows the table each second: in place on a terminal, else every five seconds.
async fn watch(shop: &Shop, seconds: Option<u64>) -> Result<(), String> {
    let terminal = std::io::stdout().is_terminal();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut before: HashMap<(String, String), Edge> = HashMap::new();
    let (mut last, mut height, mut count) = (Instant::now(), 0, 0u64);
    while seconds.is_none_or(|seconds| started.elapsed() < Duration::from_secs(seconds)) {
        ticks.tick().await;
        count += 1;
        if !terminal && count % 5 != 0 {
            continue;
        }
        let edges = shop.edges().await?;
        let lately: Vec<Edge> =
            edges.iter().map(|edge| edge.since(before.get(&(edge.from.clone(), edge.to.clone())))).collect();
        let text = table::of(&lately, Some(last.elapsed()));
        last = Instant::now();
        if terminal {
            // Up to where the last table began, and without wrapped lines, which would make it higher than it is.
            let up = if height > 0 { format!("\x1b[{height}A\x1b[J") } else { String::new() };
            println!("{up}\x1b[?7l{text}\x1b[?7h");
        } else {
            println!("{text}");
        }
        height = text.lines().count() + 1;
        before = edges.into_iter().map(|edge| ((edge.from.clone(), edge.to.clone()), edge)).collect();
    }
    // What the customers sent last has time to be counted at both ends.
    sleep(Duration::from_millis(300)).await;
    Ok(())
}
