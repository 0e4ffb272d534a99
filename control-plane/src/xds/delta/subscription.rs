//! One type on one stream: what the client asked for, what that means now, and what it holds.
//!
//! Names come in, with the news that some changed; updates and removals come out. The truth is in the catalog: here is
//! only what was told to the client, so that the difference can be told next.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::Resource;

use crate::xds::{Catalog, Client, Encoded, Kind, fingerprint, has_wildcard};

/// An update is closed when its resources have this many bytes; the rest goes into the next.
const SOFT_RESPONSE_BYTES: usize = 1 << 20;

/// The state of one type on one stream.
pub(super) struct TypeState {
    pub(super) kind: Kind,
    /// A request of this type was seen.
    pub(super) opened: bool,
    /// A name was subscribed to: an empty list no longer means everything.
    pub(super) explicit: bool,
    pub(super) wildcard: bool,
    /// What was asked for, and what it means.
    pub(super) asked: HashMap<Arc<str>, Meaning>,
    /// The other direction: by which names a resource was asked for.
    asked_by: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// What the client holds: name to version.
    pub(super) sent: HashMap<Arc<str>, Arc<str>>,
    /// The exclusive or of the fingerprints of `sent`.
    pub(super) version: u64,
    /// Names that were asked for (and, under the wildcard, any name) to look at anew.
    pending: BTreeSet<Arc<str>>,
    /// Names that are held, to look at when it is known what every name that was asked for means: they may be gone, or
    /// not be wanted any more.
    doubtful: BTreeSet<Arc<str>>,
    /// Names that were asked for and mean nothing: each may be an alias of whatever appears.
    nothing: BTreeSet<Arc<str>>,
    /// Names to answer even though nothing changed.
    forced: HashSet<Arc<str>>,
    /// Names that are gone, as the client knows them.
    pub(super) removed: BTreeSet<Arc<str>>,
    /// The client waits for an answer, even an empty one.
    pub(super) owed: bool,
}

/// What a name that was asked for means.
pub(super) enum Meaning {
    /// It was not looked up yet.
    Unknown,
    /// Nothing, and the client knows.
    Nothing,
    /// The resource of this name.
    Resource(Arc<str>),
}

impl TypeState {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            opened: false,
            explicit: false,
            wildcard: false,
            asked: HashMap::new(),
            asked_by: HashMap::new(),
            sent: HashMap::new(),
            version: 0,
            pending: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            nothing: BTreeSet::new(),
            forced: HashSet::new(),
            removed: BTreeSet::new(),
            owed: false,
        }
    }

    /// Takes over what a client that reconnects holds. This subscribes to nothing, but what is gone is told.
    pub(super) fn resume(&mut self, versions: HashMap<String, String>) {
        for (name, version) in versions {
            let name: Arc<str> = name.into();
            self.doubtful.insert(Arc::clone(&name));
            self.hold(&name, &version.into());
        }
    }

    /// `resuming`: what the client holds in the right version needs no answer, unless it warms.
    pub(super) fn subscribe(
        &mut self,
        names: Vec<String>,
        resuming: bool,
        warming: Option<&HashSet<Arc<str>>>,
        catalog: &dyn Catalog,
        client: &Client,
    ) {
        if !names.is_empty() && !self.explicit {
            self.explicit = true;
            if std::mem::take(&mut self.wildcard) {
                self.forget_unasked();
            }
        }
        for name in names {
            if name == "*" && has_wildcard(self.kind) {
                self.set_wildcard(catalog, client);
                continue;
            }
            let name: Arc<str> = name.into();
            self.asked.entry(Arc::clone(&name)).or_insert(Meaning::Unknown);
            if !resuming || warming.is_some_and(|warming| warming.contains(&name)) {
                self.forced.insert(Arc::clone(&name));
            }
            self.pending.insert(name);
        }
    }

    /// `first`: what is held is from an earlier stream, and was not sent under the wildcard of this one.
    pub(super) fn unsubscribe(&mut self, names: Vec<String>, first: bool) {
        for name in names {
            if name == "*" && has_wildcard(self.kind) {
                self.wildcard = false;
                self.owed = false;
                if !first {
                    self.forget_unasked();
                }
                continue;
            }
            let name: Arc<str> = name.into();
            self.forced.remove(&name);
            if !self.wildcard {
                self.removed.remove(&name);
            }
            self.nothing.remove(&name);
            match self.asked.remove(&name) {
                Some(Meaning::Resource(resource)) => {
                    self.unlink(&name, &resource);
                    if !self.wanted(&resource) {
                        self.drop_held(&resource);
                    } else if self.wildcard {
                        // The client forgot it together with the name; under the wildcard it still wants it.
                        self.forced.insert(Arc::clone(&resource));
                        self.pending.insert(resource);
                    }
                }
                // It may have been the reason for which the client holds something from an earlier stream.
                Some(Meaning::Unknown) if !self.wildcard => self.forget_unasked(),
                _ => {}
            }
        }
    }

    /// The client drops what it does not ask for by name.
    fn forget_unasked(&mut self) {
        let unasked =
            |name: &&Arc<str>| !self.asked.contains_key(*name) && !self.asked_by.contains_key(*name);
        for name in self.sent.keys().filter(unasked).cloned().collect::<Vec<_>>() {
            self.drop_held(&name);
        }
    }

    pub(super) fn set_wildcard(&mut self, catalog: &dyn Catalog, client: &Client) {
        self.wildcard = true;
        // A client with nothing waits for the first answer, however empty; one that resumes has what it needs.
        self.owed = self.sent.is_empty();
        self.pending.extend(catalog.names(self.kind, client));
    }

    pub(super) fn changed(&mut self, names: &HashSet<Arc<str>>, renamed: bool) {
        if !self.opened {
            return;
        }
        if renamed {
            self.pending.extend(self.asked.keys().cloned());
        }
        for name in names {
            if self.wildcard || self.asked.contains_key(name) {
                self.pending.insert(Arc::clone(name));
            }
            self.pending.extend(self.asked_by.get(name).into_iter().flatten().cloned());
        }
        if !names.is_empty() {
            self.pending.extend(self.nothing.iter().cloned());
        }
    }

    pub(super) fn all_changed(&mut self, catalog: &dyn Catalog, client: &Client) {
        self.pending.extend(self.asked.keys().cloned());
        self.doubtful.extend(self.sent.keys().cloned());
        if self.wildcard {
            self.pending.extend(catalog.names(self.kind, client));
        }
    }

    /// Answers for a resource even when it did not change, by whatever name it was asked for.
    pub(super) fn force(&mut self, resource: &Arc<str>) {
        let names = self.asked_by.get(resource).into_iter().flatten().cloned().chain([Arc::clone(resource)]);
        for name in names.filter(|name| self.asked.contains_key(name)).collect::<Vec<_>>() {
            self.forced.insert(Arc::clone(&name));
            self.pending.insert(name);
        }
    }

    pub(super) fn waiting(&self) -> bool {
        self.owed || !(self.pending.is_empty() && self.doubtful.is_empty() && self.removed.is_empty())
    }

    /// Looks at pending names; yields what must be sent, and notes what is gone.
    pub(super) fn updates(&mut self, catalog: &dyn Catalog, client: &Client) -> Vec<Arc<Encoded>> {
        let mut updates = BTreeMap::new();
        let mut bytes = 0;
        while bytes < SOFT_RESPONSE_BYTES
            && let Some(name) = self.pending.pop_first().or_else(|| self.doubtful.pop_first())
        {
            let forced = self.forced.remove(&name);
            match catalog.find(self.kind, &name, client) {
                Some(resource) => {
                    if self.found(&name, &resource, forced) {
                        bytes += resource.any.value.len();
                        updates.insert(Arc::clone(&resource.name), resource);
                    }
                }
                None => self.missing(&name, forced),
            }
        }
        updates.into_values().collect()
    }

    /// Notes that a name means a resource; says whether the client needs it.
    fn found(&mut self, name: &Arc<str>, resource: &Encoded, forced: bool) -> bool {
        self.removed.remove(name);
        self.nothing.remove(name);
        let mut news = false;
        if let Some(meaning) = self.asked.get_mut(name) {
            let before = std::mem::replace(meaning, Meaning::Resource(Arc::clone(&resource.name)));
            // Even a client that holds the resource can't know that this alias means it now: it was told otherwise, or
            // it reconnects and the alias may have moved meanwhile. Unless it says so: a version is that of one name.
            let claim = match before {
                Meaning::Unknown if *name != resource.name => self.claimed(name),
                _ => None,
            };
            news = *name != resource.name
                && !matches!(before, Meaning::Resource(_))
                && claim.as_ref() != Some(&resource.version);
            if let Meaning::Resource(before) = before
                && before != resource.name
            {
                news = true;
                self.unlink(name, &before);
                if self.wanted(&before) {
                    self.doubtful.insert(before);
                } else if self.drop_held(&before) {
                    self.removed.insert(before);
                }
            }
            self.asked_by.entry(Arc::clone(&resource.name)).or_default().insert(Arc::clone(name));
        } else if *name != resource.name {
            // A client that reconnected told the version of an alias, and asks for it no longer.
            self.drop_held(name);
        }
        if !self.wanted(&resource.name) {
            // It was held from an earlier stream, or under a wildcard that is gone.
            self.drop_held(name);
            return false;
        }
        self.removed.remove(&resource.name);
        let same = self.sent.get(&resource.name) == Some(&resource.version);
        if same && !forced && !news {
            return false;
        }
        self.hold(&resource.name, &resource.version);
        true
    }

    /// Notes that a name means nothing.
    fn missing(&mut self, name: &Arc<str>, forced: bool) {
        let held = self.drop_held(name);
        let before = match self.asked.get_mut(name) {
            Some(meaning) => {
                self.nothing.insert(Arc::clone(name));
                std::mem::replace(meaning, Meaning::Nothing)
            }
            None => {
                if held {
                    self.removed.insert(Arc::clone(name));
                }
                return;
            }
        };
        if let Meaning::Resource(resource) = &before {
            self.unlink(name, resource);
            if self.wanted(resource) {
                self.doubtful.insert(Arc::clone(resource));
            } else {
                self.drop_held(resource);
            }
        }
        if held || forced || !matches!(before, Meaning::Nothing) {
            self.removed.insert(Arc::clone(name));
        }
    }

    /// Whether the client subscribes to a resource, by whatever name.
    fn wanted(&self, resource: &str) -> bool {
        self.wildcard || self.asked_by.contains_key(resource)
    }

    fn unlink(&mut self, name: &str, resource: &str) {
        if let Some(names) = self.asked_by.get_mut(resource) {
            names.remove(name);
            if names.is_empty() {
                self.asked_by.remove(resource);
            }
        }
    }

    fn hold(&mut self, resource: &Arc<str>, version: &Arc<str>) {
        self.version ^= fingerprint(resource, version);
        if let Some(old) = self.sent.insert(Arc::clone(resource), Arc::clone(version)) {
            self.version ^= fingerprint(resource, &old);
        }
    }

    /// The version that a client, which reconnects, has of what an alias means; that is no resource of this name.
    fn claimed(&mut self, alias: &str) -> Option<Arc<str>> {
        let version = self.sent.get(alias).cloned()?;
        self.drop_held(alias);
        Some(version)
    }

    fn drop_held(&mut self, resource: &str) -> bool {
        let Some((resource, old)) = self.sent.remove_entry(resource) else { return false };
        self.version ^= fingerprint(&resource, &old);
        true
    }

    /// A resource as this client asked for it: with the aliases by which it did.
    pub(super) fn resource(&self, resource: &Encoded) -> Resource {
        let names = self.asked_by.get(&resource.name).into_iter().flatten();
        Resource {
            name: resource.name.to_string(),
            aliases: names.filter(|name| **name != resource.name).map(|name| name.to_string()).collect(),
            version: resource.version.to_string(),
            resource: Some(resource.any.clone()),
            ..Default::default()
        }
    }
}
