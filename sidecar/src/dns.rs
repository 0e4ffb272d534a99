//! Names to addresses, for clusters that are configured by name and for hosts outside the mesh.
//!
//! In: host names, and the system's resolver configuration (`/etc/resolv.conf`, `/etc/hosts`). Out: addresses, looked up
//! again when their TTL ends. A lookup that fails never takes addresses away: the last good ones stay. All of this runs
//! on the control thread; a worker asks through [`Lookups`].

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tulle_mesh::model::DnsFamily;

use crate::config;

/// A TTL is taken for no less than this.
const MIN_TTL: Duration = Duration::from_secs(1);
/// A TTL is taken for no more than this.
const MAX_TTL: Duration = Duration::from_secs(300);
/// The pause after a failed lookup.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// The most lookups for workers at one time; more wait.
const MAX_LOOKUPS: usize = 64;

/// Asks DNS as the system is configured to. Cheap to clone; all clones share a cache.
#[derive(Clone)]
pub(crate) struct Resolver(TokioResolver);

/// What a name resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Never empty; in the order of the answer.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long it holds.
    pub(crate) ttl: Duration,
}

impl Resolver {
    /// As `/etc/resolv.conf` and `/etc/hosts` say. Where the former is missing or broken, only the latter. Where there is a
    /// resolver for the application, its name servers are asked, never itself.
    ///
    /// # Errors
    /// When no resolver can be made at all.
    pub(crate) fn new(dns: Option<&config::Dns>) -> Result<Self, DnsError> {
        let (mut system, options) = system();
        if let Some(dns) = dns {
            let servers = name_servers(dns).into_iter().map(server_at).collect();
            let (domain, search, _) = system.into_parts();
            system = ResolverConfig::from_parts(domain, search, servers);
        }
        let builder = TokioResolver::builder_with_config(system, TokioRuntimeProvider::default());
        Self::build(builder.with_options(options))
    }

    fn build(mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, DnsError> {
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.positive_min_ttl = Some(MIN_TTL);
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(AFTER_FAILURE);
        let failed = |error: hickory_resolver::net::NetError| DnsError {
            host: String::new(),
            reason: error.to_string(),
        };
        builder.build().map(Self).map_err(failed)
    }

    /// Looks a name up, or in the cache. An address in text is its own answer.
    ///
    /// # Errors
    /// When there is no such name, or no server answers in time.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Answer, DnsError> {
        if let Ok(address) = host.parse() {
            return Ok(Answer { addresses: vec![address], ttl: MAX_TTL });
        }
        let failed = |reason: String| DnsError { host: host.into(), reason };
        let found = self.0.lookup_ip(host).await.map_err(|e| failed(e.to_string()))?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in found.iter() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(failed("it has no address".into()));
        }
        let ttl = found.valid_until().saturating_duration_since(Instant::now()).clamp(MIN_TTL, MAX_TTL);
        Ok(Answer { addresses, ttl })
    }
}

/// Whom the resolver for the application asks for names outside of the mesh: whom it is told to ask, else whom the system
/// asks; never itself.
pub(crate) fn name_servers(dns: &config::Dns) -> Vec<SocketAddr> {
    if let Some(upstream) = &dns.upstream {
        return upstream.clone();
    }
    let (system, _) = system();
    let addresses = system.name_servers().iter().flat_map(|server| {
        server.connections.iter().map(|connection| SocketAddr::new(server.ip, connection.port))
    });
    let mut servers = Vec::new();
    for address in addresses.filter(|address| !dns.is_itself(*address)) {
        if !servers.contains(&address) {
            servers.push(address);
        }
    }
    servers
}

fn system() -> (ResolverConfig, ResolverOpts) {
    read_system_conf().unwrap_or_else(|error| {
        tracing::warn!("/etc/resolv.conf is unusable, so only /etc/hosts is asked for names: {error}");
        (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default())
    })
}

fn server_at(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// What is known of a name that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// All of its addresses, sorted.
    pub(crate) all: Vec<IpAddr>,
    /// One of them, which stays the same for as long as it is one of them.
    pub(crate) one: IpAddr,
}

impl Resolved {
    /// The addresses of a family.
    pub(crate) fn of(&self, family: DnsFamily) -> impl Iterator<Item = IpAddr> {
        let wanted = self.wanted(family);
        self.all.iter().copied().filter(move |ip| wanted.is_none_or(|v4| ip.is_ipv4() == v4))
    }

    /// One of these.
    pub(crate) fn one_of(&self, family: DnsFamily) -> Option<IpAddr> {
        let fits = self.wanted(family).is_none_or(|v4| self.one.is_ipv4() == v4);
        if fits { Some(self.one) } else { self.of(family).next() }
    }

    /// Whether IPv4 is wanted; `None`: both are.
    fn wanted(&self, family: DnsFamily) -> Option<bool> {
        match family {
            DnsFamily::All => None,
            DnsFamily::V4Only => Some(true),
            DnsFamily::V6Only => Some(false),
            DnsFamily::Auto => Some(!self.all.iter().any(IpAddr::is_ipv6)),
            DnsFamily::V4Preferred => Some(self.all.iter().any(IpAddr::is_ipv4)),
        }
    }
}

/// The names that clusters are configured by, each looked up again and again.
#[derive(Debug)]
pub(crate) struct Watched {
    resolver: Resolver,
    hosts: HashMap<Arc<str>, Watch>,
    answers: mpsc::Sender<(Arc<str>, Option<Vec<IpAddr>>)>,
    incoming: mpsc::Receiver<(Arc<str>, Option<Vec<IpAddr>>)>,
}

#[derive(Debug)]
struct Watch {
    task: AbortHandle,
    /// The first lookup has ended, well or not.
    settled: bool,
    known: Option<Resolved>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// No name yet.
    pub(crate) fn new(resolver: Resolver) -> Self {
        let (answers, incoming) = mpsc::channel(64);
        Self { resolver, hosts: HashMap::new(), answers, incoming }
    }

    /// Watches these names, and no others any more. Needs a tokio runtime.
    pub(crate) fn watch(&mut self, names: &BTreeSet<Arc<str>>) {
        self.hosts.retain(|host, _| names.contains(host));
        for name in names {
            if !self.hosts.contains_key(name) {
                let task =
                    tokio::spawn(follow(self.resolver.clone(), Arc::clone(name), self.answers.clone()));
                let watch = Watch { task: task.abort_handle(), settled: false, known: None };
                self.hosts.insert(Arc::clone(name), watch);
            }
        }
    }

    /// Waits for the next answer that changes what is known.
    pub(crate) async fn changed(&mut self) {
        while let Some((host, addresses)) = self.incoming.recv().await {
            if let Some(watch) = self.hosts.get_mut(&host)
                && watch.take(addresses)
            {
                return;
            }
        }
    }

    /// What is known of a name; `None` while there has been no good answer.
    pub(crate) fn known(&self, host: &str) -> Option<&Resolved> {
        self.hosts.get(host)?.known.as_ref()
    }

    /// Whether a name has been looked up at least once.
    pub(crate) fn is_settled(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|watch| watch.settled)
    }
}

impl Watch {
    fn take(&mut self, addresses: Option<Vec<IpAddr>>) -> bool {
        let news = !std::mem::replace(&mut self.settled, true);
        let Some(mut all) = addresses else { return news };
        let Some(first) = all.first().copied() else { return news };
        let one = self.known.as_ref().map(|known| known.one).filter(|one| all.contains(one)).unwrap_or(first);
        all.sort_unstable();
        let resolved = Some(Resolved { all, one });
        let changed = self.known != resolved;
        self.known = resolved;
        news || changed
    }
}

async fn follow(resolver: Resolver, host: Arc<str>, answers: mpsc::Sender<(Arc<str>, Option<Vec<IpAddr>>)>) {
    let mut failing = false;
    loop {
        let answer = resolver.resolve(&host).await;
        let (addresses, pause) = match answer {
            Ok(answer) => {
                failing = false;
                (Some(answer.addresses), answer.ttl)
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("{error}; what was known of it stays in force");
                }
                (None, AFTER_FAILURE)
            }
        };
        if answers.send((Arc::clone(&host), addresses)).await.is_err() {
            return;
        }
        // Later than the TTL, never earlier: earlier would only find the cache.
        sleep(pause.mul_f64(1.0 + 0.1 * fastrand::f64())).await;
    }
}

/// A worker's question and where its answer goes.
pub(crate) type Question = (String, oneshot::Sender<Result<Vec<IpAddr>, DnsError>>);

/// How workers look names up: on the control thread, through one cache.
#[derive(Clone, Debug)]
pub(crate) struct Lookups(mpsc::Sender<Question>);

impl Lookups {
    /// A pair: what workers hold, and what [`serve`] answers.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Question>) {
        let (questions, incoming) = mpsc::channel(256);
        (Self(questions), incoming)
    }

    /// The addresses of a host outside the mesh; never empty.
    ///
    /// # Errors
    /// When there is no such name, or no server answers in time.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let stopped = || DnsError { host: host.into(), reason: "the sidecar is stopping".into() };
        let (answer, question) = oneshot::channel();
        self.0.send((host.into(), answer)).await.map_err(|_| stopped())?;
        question.await.map_err(|_| stopped())?
    }
}

/// Answers the workers' questions until there are no workers.
pub(crate) async fn serve(resolver: Resolver, mut questions: mpsc::Receiver<Question>) {
    let mut lookups = JoinSet::new();
    while let Some((host, answer)) = questions.recv().await {
        while lookups.len() >= MAX_LOOKUPS {
            lookups.join_next().await;
        }
        while lookups.try_join_next().is_some() {}
        let resolver = resolver.clone();
        lookups.spawn(async move {
            let found = resolver.resolve(&host).await.map(|answer| answer.addresses);
            // Whoever asked may have gone away.
            let _ = answer.send(found);
        });
    }
}

/// A name that could not be resolved. It may be wrong, or no server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsError {
    /// The name.
    pub(crate) host: String,
    /// What the resolver says.
    pub(crate) reason: String,
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DNS: {:?}: {}", self.host, self.reason)
    }
}

impl std::error::Error for DnsError {}

#[cfg(test)]
mod tests;
