//! Carries the reports of replicas to the one that leads, which alone writes status: each is an entry of one ConfigMap.
//!
//! In: this replica's [`Board`], and whether it leads. Out: who does not lead writes its [`Report`] when it has changed, at
//! most once a second, and otherwise now and then as a sign of life; who leads follows the ConfigMap, and takes out
//! whoever has given no sign for a while, by the leader's own clock. One replica alone writes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Board;
use super::replicas::Report;
use crate::kubernetes::{Cluster, FIELD_MANAGER, Pause, with_causes};

/// The ConfigMap's name.
pub const NAME: &str = "tulle-control-plane-replicas";

/// How often changes are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often a replica gives a sign of life.
const BEAT: Duration = Duration::from_secs(10);

/// Who has given none for this long is gone, and its sidecars are somebody else's.
const LAPSE: Duration = Duration::from_secs(30);

/// How long one that stops may take to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// The longest name of an entry of a ConfigMap.
const MAX_KEY: usize = 253;

/// Tells or follows, until it is told to stop.
pub struct Exchange {
    /// Where the ConfigMap is.
    pub cluster: Cluster,
    /// The name of this replica, that no other has.
    pub name: String,
    /// What is told, or told to.
    pub board: Arc<Board>,
    /// Whether this replica leads.
    pub leader: watch::Receiver<bool>,
    /// Cancelled when the control plane stops.
    pub stop: CancellationToken,
}

/// An entry of the ConfigMap.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    /// Counts the signs of life.
    beat: u64,
    report: Report,
}

impl Exchange {
    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        let (stop, mut leader) = (self.stop.clone(), self.leader.clone());
        self.name = key(&self.name);
        let mut told = false;
        loop {
            let leads = *leader.borrow_and_update();
            let changed = leader.wait_for(|now| *now != leads);
            tokio::select! {
                () = self.follow(told), if leads => {}
                () = self.tell(&mut told), if !leads => {}
                changed = changed => if changed.is_err() { return },
                () = stop.cancelled() => break,
            }
            self.forget();
        }
        if told {
            // Whoever leads would find out by itself, later.
            let _ = timeout(FAREWELL, self.put(&self.name, None)).await;
        }
    }

    /// Writes what this replica knows of its sidecars, without end.
    async fn tell(&self, told: &mut bool) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut entry = Entry::default();
        let mut written: Option<Instant> = None;
        let (mut turn, mut failing) = (None, false);
        loop {
            ticks.tick().await;
            let due = written.is_none_or(|at| at.elapsed() >= BEAT);
            let mut news = false;
            if turn != Some(self.board.turn()) {
                // What was said before is what the leader goes by meanwhile: it tells of which objects it is not about.
                self.board.settle().await;
                turn = Some(self.board.turn());
                let report = self.board.report();
                news = report != entry.report;
                entry.report = report;
            }
            if !due && !news {
                continue;
            }
            entry.beat += 1;
            // Strings are its only keys.
            let Ok(text) = serde_json::to_string(&entry) else { continue };
            *told = true;
            match self.put(&self.name, Some(text)).await {
                Ok(()) => (written, failing) = (Some(Instant::now()), false),
                Err(error) => {
                    if !failing {
                        let error = with_causes(&error);
                        tracing::warn!(
                            error,
                            "can't tell the leader of this replica's sidecars; trying again"
                        );
                    }
                    (written, failing) = (None, true);
                }
            }
        }
    }

    /// Follows what others say, without end. `told`: this one has said something before.
    async fn follow(&self, told: bool) {
        let mut own = told;
        let mut beats: HashMap<String, (u64, Instant)> = HashMap::new();
        let mut states = std::pin::pin!(watch_object(self.api(), NAME));
        let mut pause = Pause::default();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                state = states.next() => match state {
                    Some(Ok(state)) => {
                        pause.reset();
                        self.take(state, &mut beats);
                    }
                    Some(Err(error)) => {
                        tracing::debug!(error = with_causes(&error), "can't follow other replicas");
                        sleep(pause.next()).await;
                    }
                    None => return std::future::pending().await,
                },
                _ = ticks.tick() => {
                    let lapsed = beats.iter().filter(|(_, (_, since))| since.elapsed() > LAPSE);
                    let mut gone: Vec<String> = lapsed.map(|(name, _)| name.clone()).collect();
                    for name in &gone {
                        tracing::info!(replica = name, "it has given no sign of life; its sidecars are not waited for");
                        self.board.replicas().set(name, None);
                        beats.remove(name);
                    }
                    if std::mem::take(&mut own) {
                        gone.push(self.name.clone());
                    }
                    for name in gone {
                        if let Err(error) = self.put(&name, None).await {
                            // It is a trace of the past that counts for nothing.
                            tracing::debug!(error = with_causes(&error), "can't take out a replica");
                        }
                    }
                }
            }
        }
    }

    /// Takes the ConfigMap as it is now. Of one that somebody has deleted the entries count until they lapse.
    fn take(&self, state: Option<ConfigMap>, beats: &mut HashMap<String, (u64, Instant)>) {
        let Some(map) = state else { return };
        let entries = map.data.unwrap_or_default();
        beats.retain(|name, _| {
            let stays = entries.contains_key(name);
            if !stays {
                self.board.replicas().set(name, None);
            }
            stays
        });
        for (name, text) in entries.into_iter().filter(|(name, _)| *name != self.name) {
            // One that can't be read, of another version, vouches for nothing.
            let Entry { beat, report } = serde_json::from_str(&text).unwrap_or_default();
            match beats.get(&name) {
                Some((last, _)) if *last == beat => {}
                _ => drop(beats.insert(name.clone(), (beat, Instant::now()))),
            }
            self.board.replicas().set(&name, Some(report));
        }
    }

    fn forget(&self) {
        for (name, _) in self.board.replicas().reports() {
            self.board.replicas().set(&name, None);
        }
    }

    /// Writes an entry, or takes it out. Entries of others stay as they are.
    async fn put(&self, name: &str, text: Option<String>) -> Result<(), kube::Error> {
        let patch = json!({ "data": { name: text.as_deref().map_or(Value::Null, Value::from) } });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patched = self.api().patch(NAME, &params, &Patch::Merge(&patch)).await;
        match (patched, text) {
            (Err(kube::Error::Api(status)), Some(text)) if status.code == 404 => {
                self.create(name, text).await
            }
            (Err(kube::Error::Api(status)), None) if status.code == 404 => Ok(()),
            (patched, _) => patched.map(drop),
        }
    }

    async fn create(&self, name: &str, text: String) -> Result<(), kube::Error> {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(self.cluster.namespace.clone()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".into(), "tulle".into())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(name.to_owned(), text)])),
            ..ConfigMap::default()
        };
        // Of two that make it at once one is told to come again, which it does with its next sign of life.
        self.api().create(&PostParams::default(), &map).await.map(drop)
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace)
    }
}

/// A name as it may stand in a ConfigMap. Its end, which is its own, is kept.
fn key(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .collect();
    safe[safe.len().saturating_sub(MAX_KEY)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_key_of_a_config_map() {
        assert_eq!(key("tulle-0_00ff"), "tulle-0_00ff");
        assert_eq!(key("h\u{f6}st/1_ab"), "h-st-1_ab");
        let long = key(&format!("{}_0123", "x".repeat(300)));
        assert!(long.len() == MAX_KEY && long.ends_with("_0123"), "{long}");
    }
}
