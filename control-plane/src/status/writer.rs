//! Writes the status of routes and policies to the Kubernetes API server.
//!
//! In: what every object's status should say ([`Board::wanted`]), and whether this replica is the leader. Out: writes to the
//! `status` subresource, of changes alone. Only the leader writes. A list of entries is shared with other controllers and
//! has no keys, so it is read, changed and written back with its `resourceVersion`; whoever was faster is read again. What
//! was written is remembered, so that nothing is written twice and the writer never answers its own writes. What others
//! take away is put back, each time after a longer pause (`efforts`): two who both insist must not keep an API server
//! busy. It never writes to a `spec`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Board;
use super::document::Wanted;
use super::efforts::Efforts;
use super::features;
use super::kinds::{KINDS, StatusKind};
use crate::kubernetes::{FIELD_MANAGER, with_causes};
use crate::source::ObjectRef;
use crate::source::kubernetes::Statuses;

/// How often changes are looked for. All that happens within it is one write per object.
const INTERVAL: Duration = Duration::from_secs(1);

/// The pause after each write: at most 50 a second, of a server that others use too.
const PAUSE: Duration = Duration::from_millis(20);

/// How often all statuses are read anew.
const RESYNC: Duration = Duration::from_secs(600);

/// How often the objects that tell the features of the mesh are looked at: few, and often none.
const FEATURES: Duration = Duration::from_secs(15);

/// How often a write is tried at once when others write to the same object; then it has to wait.
const ATTEMPTS: u32 = 5;

/// How many objects one answer of the API server holds.
const PAGE: u32 = 500;

/// Writes statuses while it leads.
pub struct StatusWriter {
    /// The API server.
    pub client: Client,
    /// What should be written.
    pub board: Arc<Board>,
    /// What the API server has, as the source comes across it.
    pub statuses: Arc<Statuses>,
    /// Whether this replica is the leader.
    pub leader: watch::Receiver<bool>,
    /// Cancelled when the control plane stops.
    pub stop: CancellationToken,
}

/// The statuses that are known to be there, by object.
type Known = HashMap<ObjectRef, Value>;

impl StatusWriter {
    /// Writes until the control plane stops.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.lead() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn lead(&mut self) {
        loop {
            if self.leader.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let mut leader = self.leader.clone();
            tokio::select! {
                () = self.write_changes() => {}
                // What the next leader writes must not be fought over.
                ended = leader.wait_for(|leads| !leads) => if ended.is_err() { return },
            }
        }
    }

    async fn write_changes(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kinds = Kinds::default();
        let mut known: Option<(Known, Instant)> = None;
        let mut efforts = Efforts::default();
        let (mut done, mut told): (_, Option<Instant>) = (None, None);
        loop {
            ticks.tick().await;
            let news = self.statuses.take();
            if known.as_ref().is_none_or(|(_, read)| read.elapsed() > RESYNC) {
                match self.read_all(&mut kinds).await {
                    Ok(read) => {
                        known = Some((read, Instant::now()));
                        done = None;
                    }
                    Err(error) => {
                        tracing::warn!("can't read the status of objects: {error}");
                        continue;
                    }
                }
            }
            if told.is_none_or(|told| told.elapsed() > FEATURES) {
                told = Some(Instant::now());
                if let Err(error) = features::publish(&self.client).await {
                    let error = with_causes(&error);
                    tracing::warn!("can't write the features of the mesh: {error}; trying again");
                }
            }
            let Some((known, _)) = &mut known else { continue };
            // One that is older than what was just written costs a look at the object, and no more.
            let is_new =
                |(object, status): &(ObjectRef, Value)| known.get(object).unwrap_or(&Value::Null) != status;
            let changed: Known = news.into_iter().filter(is_new).collect();
            let turn = self.board.turn();
            if done == Some(turn) && changed.is_empty() && !efforts.due(Instant::now()) {
                continue;
            }
            known.extend(changed);
            self.board.settle().await;
            let turn = self.board.turn();
            let wanted = self.board.wanted();
            known.retain(|object, _| wanted.contains_key(object));
            efforts.retain(|object| wanted.contains_key(object));
            for (object, wanted) in &wanted {
                let status = known.get(object).unwrap_or(&Value::Null);
                if wanted.merge(status, "").is_none() || !efforts.may(object, wanted, Instant::now()) {
                    continue;
                }
                let written = self.write(object, wanted, &mut kinds).await;
                let first = efforts.made(object, wanted, written.is_ok(), Instant::now());
                match written {
                    Ok(status) => drop(known.insert(object.clone(), status)),
                    Err(error) if first => {
                        let error = with_causes(&error);
                        tracing::warn!("can't write the status of {object}: {error}; trying again");
                    }
                    Err(error) => tracing::debug!("can't write the status of {object}: {error}"),
                }
                sleep(PAUSE).await;
            }
            done = Some(turn);
        }
    }

    /// The status of every object that has one of ours.
    async fn read_all(&self, kinds: &mut Kinds) -> Result<Known, Error> {
        let mut known = Known::new();
        for kind in &KINDS {
            let Some(resource) = kinds.served(&self.client, kind).await? else { continue };
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let list = match api.list(&page).await {
                    Ok(list) => list,
                    Err(error) => {
                        kinds.forget(kind, &error);
                        return Err(error);
                    }
                };
                for object in list.items {
                    let (namespace, name) = (object.metadata.namespace, object.metadata.name);
                    let object_ref = ObjectRef {
                        kind: kind.kind,
                        namespace: namespace.unwrap_or_default(),
                        name: name.unwrap_or_default(),
                    };
                    known.insert(object_ref, object.data["status"].clone());
                }
                match list.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => break,
                }
            }
        }
        Ok(known)
    }

    /// Writes a status, and says what it is then. One whose object is gone has none.
    async fn write(&self, object: &ObjectRef, wanted: &Wanted, kinds: &mut Kinds) -> Result<Value, Error> {
        let Some(kind) = KINDS.iter().find(|kind| kind.kind == object.kind) else {
            return Ok(Value::Null);
        };
        let Some(resource) = kinds.served(&self.client, kind).await? else { return Ok(Value::Null) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        let mut attempt = 1;
        loop {
            let Some(live) = api.get_opt(&object.name).await? else {
                // The object is gone, or its kind, or only this version of it.
                kinds.served.remove(kind.kind);
                return Ok(Value::Null);
            };
            let status = &live.data["status"];
            let now = now();
            let Some(entries) = wanted.merge(status, &now) else { return Ok(status.clone()) };
            let patch = json!({
                "metadata": { "resourceVersion": live.metadata.resource_version },
                "status": { wanted.list(): entries },
            });
            let author = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            let written = api.patch_status(&object.name, &author, &Patch::Merge(&patch)).await;
            match written {
                Ok(written) => return Ok(written.data["status"].clone()),
                Err(Error::Api(response)) if response.code == 409 && attempt < ATTEMPTS => {
                    sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Which version of each kind the API server serves, as far as it is known.
#[derive(Default)]
struct Kinds {
    served: HashMap<&'static str, ApiResource>,
}

impl Kinds {
    /// The version of a kind that is served, if any is. What is not served is asked for again, since a CRD may come later.
    async fn served(&mut self, client: &Client, kind: &StatusKind) -> Result<Option<ApiResource>, Error> {
        if let Some(resource) = self.served.get(kind.kind) {
            return Ok(Some(resource.clone()));
        }
        for version in kind.versions {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group, version, kind.kind));
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            match api.list(&ListParams::default().limit(1)).await {
                Ok(_) => {
                    self.served.insert(kind.kind, resource.clone());
                    return Ok(Some(resource));
                }
                Err(Error::Api(response)) if response.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A version that is no longer served is looked for anew.
    fn forget(&mut self, kind: &StatusKind, error: &Error) {
        if matches!(error, Error::Api(response) if response.code == 404) {
            self.served.remove(kind.kind);
        }
    }
}

/// The time, as Kubernetes writes it.
pub(super) fn now() -> String {
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{now:.0}")
}
