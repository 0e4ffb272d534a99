//! The state machine against a client that does what the protocol asks: whatever happens in whatever order, in the end
//! the client has what the catalog shows it, no more and no less.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;

use super::*;
use crate::caller::Proof;
use crate::xds::fingerprint;

const NAMES: [&str; 6] = ["a", "b", "c", "x", "y", "z"];

/// Resources `a`, `b`, `c`; aliases `x`, `y`, `z`.
#[derive(Default)]
struct Fake(Mutex<Content>);

#[derive(Default)]
struct Content {
    resources: BTreeMap<&'static str, u8>,
    aliases: BTreeMap<&'static str, &'static str>,
}

impl Catalog for Fake {
    fn find(&self, _: Kind, name: &str, _: &crate::xds::Client) -> Option<Arc<Encoded>> {
        let content = self.0.lock().unwrap();
        let name = content.aliases.get(name).copied().unwrap_or(name);
        let (name, version) = content.resources.get_key_value(name)?;
        // As on the wire, a resource says its own name.
        let value = [name.as_bytes(), &[*version]].concat();
        Some(Arc::new(Encoded::new(name, Any { type_url: String::new(), value })))
    }

    fn names(&self, _: Kind, _: &crate::xds::Client) -> Vec<Arc<str>> {
        self.0.lock().unwrap().resources.keys().map(|name| (*name).into()).collect()
    }
}

/// What a client believes.
#[derive(Default)]
struct Client {
    /// What it asked for, and what that means; `None` where it knows of nothing.
    meaning: BTreeMap<String, Option<String>>,
    wildcard: bool,
    held: BTreeMap<String, String>,
}

impl Client {
    fn apply(&mut self, response: DeltaDiscoveryResponse) {
        let mut seen = BTreeSet::new();
        for resource in response.resources {
            assert!(seen.insert(resource.name.clone()), "a name stands twice in a response");
            for name in resource.aliases.iter().chain([&resource.name]) {
                if let Some(meaning) = self.meaning.get_mut(name) {
                    *meaning = Some(resource.name.clone());
                }
            }
            self.held.insert(resource.name, resource.version);
        }
        for name in response.removed_resources {
            assert!(!seen.contains(&name), "a name is sent and removed at once");
            self.held.remove(&name);
            for (asked, meaning) in &mut self.meaning {
                if *asked == name || meaning.as_ref() == Some(&name) {
                    *meaning = None;
                }
            }
        }
        self.forget();
    }

    /// Drops what nobody asks for.
    fn forget(&mut self) {
        let Self { meaning, wildcard, held } = self;
        held.retain(|name, _| *wildcard || meaning.values().flatten().any(|wanted| wanted == name));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Remove(usize),
    Alias(usize, Option<usize>),
    Subscribe(usize),
    Unsubscribe(usize),
    Wildcard(bool),
    Respond,
    Lag,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..3u8).prop_map(|(name, version)| Step::Put(name, version)),
        (0..3usize).prop_map(Step::Remove),
        (3..6usize, prop::option::of(0..3usize)).prop_map(|(alias, name)| Step::Alias(alias, name)),
        (0..6usize).prop_map(Step::Subscribe),
        (0..6usize).prop_map(Step::Unsubscribe),
        any::<bool>().prop_map(Step::Wildcard),
        Just(Step::Respond),
        Just(Step::Respond),
        Just(Step::Lag),
        Just(Step::Reconnect),
    ]
}

/// A stream and the client at its end. Responses arrive at once; requests too.
struct Pair {
    catalog: Fake,
    client: Client,
    server: Delta,
    nonce: u32,
    /// It has reconnected.
    resumes: bool,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            catalog: Fake::default(),
            client: Client::default(),
            server: open(),
            nonce: 0,
            resumes: false,
        };
        // Opens the type, so that the first change is one that the stream hears of.
        pair.request(&["*"], &["*"], HashMap::new());
        pair
    }

    fn request(&mut self, subscribe: &[&str], unsubscribe: &[&str], held: HashMap<String, String>) {
        let request = DeltaDiscoveryRequest {
            type_url: Kind::Cluster.type_url().into(),
            resource_names_subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
            initial_resource_versions: held,
            ..Default::default()
        };
        self.server.request(request, &self.catalog).unwrap();
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Put(name, version) => {
                self.catalog.0.lock().unwrap().resources.insert(NAMES[name], version);
                self.server.changed(&Changed::new([(Kind::Cluster, NAMES[name].into())]));
            }
            Step::Remove(name) => {
                self.catalog.0.lock().unwrap().resources.remove(NAMES[name]);
                self.server.changed(&Changed::new([(Kind::Cluster, NAMES[name].into())]));
            }
            Step::Alias(alias, name) => {
                let mut content = self.catalog.0.lock().unwrap();
                match name {
                    Some(name) => content.aliases.insert(NAMES[alias], NAMES[name]),
                    None => content.aliases.remove(NAMES[alias]),
                };
                drop(content);
                self.server.changed(&Changed::new([(Kind::Cluster, NAMES[alias].into())]));
            }
            Step::Subscribe(name) => {
                // What is held already is known by its own name at once.
                let known = self.client.held.contains_key(NAMES[name]).then(|| NAMES[name].to_owned());
                self.client.meaning.entry(NAMES[name].into()).or_insert(known);
                self.request(&[NAMES[name]], &[], HashMap::new());
            }
            Step::Unsubscribe(name) => {
                self.client.meaning.remove(NAMES[name]);
                self.client.forget();
                self.request(&[], &[NAMES[name]], HashMap::new());
            }
            Step::Wildcard(on) => {
                // Left out: a client that turns the wildcard on or off on a new stream before it has its first answers.
                // No server can know what such a client still holds.
                while self.resumes && self.server.waiting() {
                    self.respond();
                }
                self.resumes = false;
                self.client.wildcard = on;
                self.client.forget();
                if on {
                    self.request(&["*"], &[], HashMap::new())
                } else {
                    self.request(&[], &["*"], HashMap::new())
                }
            }
            Step::Respond => self.respond(),
            Step::Lag => self.server.all_changed(&self.catalog),
            Step::Reconnect => {
                self.server = open();
                self.resumes = true;
                let mut names: Vec<_> = self.client.meaning.keys().cloned().collect();
                names.push("*".into());
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let off: &[&str] = if self.client.wildcard { &[] } else { &["*"] };
                let mut held: HashMap<_, _> = self.client.held.clone().into_iter().collect();
                for (alias, resource) in &self.client.meaning {
                    let version = resource.as_ref().and_then(|resource| self.client.held.get(resource));
                    held.extend(version.map(|version| (alias.clone(), version.clone())));
                }
                self.request(&names, off, held);
            }
        }
    }

    fn respond(&mut self) {
        self.nonce += 1;
        if let Some((response, batch)) = self.server.next(&self.nonce.to_string(), &self.catalog) {
            assert_eq!(response.resources.len(), batch.names.len());
            self.client.apply(response);
        }
    }

    /// Lets everything arrive, then compares.
    fn settle(mut self) {
        for _ in 0..100 {
            if self.server.waiting() {
                self.respond();
            }
        }
        assert!(!self.server.waiting(), "it comes to rest");
        let client = crate::xds::Client::new(caller(), &Node::default());
        let mut wanted = BTreeMap::new();
        if self.client.wildcard {
            for name in self.catalog.names(Kind::Cluster, &client) {
                let resource = self.catalog.find(Kind::Cluster, &name, &client).unwrap();
                wanted.insert(name.to_string(), resource.version.to_string());
            }
        }
        for (asked, meaning) in &self.client.meaning {
            let resource = self.catalog.find(Kind::Cluster, asked, &client);
            assert_eq!(*meaning, resource.as_ref().map(|found| found.name.to_string()), "what {asked} means");
            if let Some(resource) = resource {
                wanted.insert(resource.name.to_string(), resource.version.to_string());
            }
        }
        assert_eq!(self.client.held, wanted);
        let state = &self.server.types[place(Kind::Cluster)];
        let sent: BTreeMap<_, _> =
            state.sent.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
        assert_eq!(sent, wanted, "what the server thinks that the client holds");
        let version = sent.iter().fold(0, |sum, (name, version)| sum ^ fingerprint(name, version));
        assert_eq!(state.version, version);
    }
}

fn caller() -> Caller {
    let identity = "spiffe://td/ns/shop/sa/web".parse().unwrap();
    Caller { identity, proof: Proof::Token { expires: SystemTime::UNIX_EPOCH } }
}

fn open() -> Delta {
    let first = DeltaDiscoveryRequest { node: Some(Node::default()), ..Default::default() };
    Delta::open(caller(), &first).unwrap()
}

#[test]
fn an_alias_that_is_given_up_after_a_reconnection_is_held_by_nobody() {
    let mut pair = Pair::new();
    let before = [Step::Put(2, 0), Step::Alias(4, Some(2)), Step::Subscribe(4), Step::Respond];
    let after = [Step::Wildcard(true), Step::Respond, Step::Reconnect, Step::Unsubscribe(4)];
    for step in before.into_iter().chain(after) {
        pair.run(step);
    }
    pair.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn in_the_end_the_client_has_what_the_catalog_shows(steps in prop::collection::vec(step(), 0..40)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.run(step);
        }
        pair.settle();
    }
}
