//! One kind: found, listed and watched, for as long as the control plane runs.
//!
//! In: the API server's lists and watches. Out: readings for the [`Mirror`]. An error never ends it: what is known stays,
//! and it tries again, ever more slowly.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::sleep;
use tulle_mesh::yaml::path_text;

use super::crds::Crds;
use super::mirror::{Absence, Mirror, Reading};
use super::{is_custom, prune};
use crate::kubernetes::{Pause, with_causes};
use crate::source::read::read;
use crate::source::{Key, Kind, Problem, object_ref};

/// How long a definition may be there before its kind is served.
const ESTABLISHING: Duration = Duration::from_secs(2);

/// How often it is looked at, that long after each other, whether a definition that changed has brought another version.
const LOOKS: u32 = 3;

/// Mirrors the objects of a kind, without end.
pub(super) async fn reflect<T: Kind>(client: Client, mirror: Arc<Mirror>, mut crds: Crds) {
    let mut pause = Pause::default();
    loop {
        let Some(resource) = locate::<T>(&client, &mirror, &mut crds, &mut pause).await else { return };
        tokio::select! {
            () = follow::<T>(&client, &resource, &mirror, &mut pause) => {}
            () = moved::<T>(&client, &resource, crds.clone()) => {}
        }
    }
}

/// Waits until the kind is there, and finds out in which version; `None` when the control plane ends.
async fn locate<T: Kind>(
    client: &Client,
    mirror: &Mirror,
    crds: &mut Crds,
    pause: &mut Pause,
) -> Option<ApiResource> {
    if !is_custom::<T>() {
        return Some(resource::<T>(T::VERSIONS.first()?));
    }
    let name = definition(&resource::<T>(T::VERSIONS.first()?));
    let mut waited = Duration::ZERO;
    loop {
        let installed = crds.borrow_and_update().as_ref().map(|names| names.contains_key(&name));
        match installed {
            None => crds.changed().await.ok()?,
            Some(false) => {
                mirror.absent::<T>(Absence::NotInstalled);
                waited = Duration::ZERO;
                pause.reset();
                crds.changed().await.ok()?;
            }
            Some(true) => {
                match served::<T>(client).await {
                    Ok(Some(version)) => return Some(resource::<T>(version)),
                    Ok(None) if waited >= ESTABLISHING => mirror.absent::<T>(Absence::OtherVersions),
                    Ok(None) => {}
                    Err(error) => mirror.failing::<T>(with_causes(&error)),
                }
                let next = pause.next();
                tokio::select! {
                    () = sleep(next) => waited += next,
                    changed = crds.changed() => changed.ok()?,
                }
            }
        }
    }
}

/// The first of the versions that are read here which the API server serves.
pub(super) async fn served<T: Kind>(client: &Client) -> Result<Option<&'static str>, kube::Error> {
    for version in T::VERSIONS {
        match client.list_api_group_resources(&format!("{}/{version}", T::GROUP)).await {
            Ok(list) if list.resources.iter().any(|resource| resource.kind == T::KIND) => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns when the kind's definition is gone, or another version of it is to be read than the one that was found.
async fn moved<T: Kind>(client: &Client, resource: &ApiResource, mut crds: Crds) {
    if !is_custom::<T>() {
        return std::future::pending().await;
    }
    let name = definition(resource);
    let mut looks = 0;
    loop {
        if crds.borrow_and_update().as_ref().is_some_and(|names| !names.contains_key(&name)) {
            return;
        }
        tokio::select! {
            changed = crds.changed() => match changed {
                // What a definition says is served a while later.
                Ok(()) => looks = LOOKS,
                // The control plane ends, and this task with it.
                Err(_) => return,
            },
            () = sleep(ESTABLISHING), if looks > 0 => {
                looks -= 1;
                if let Ok(Some(version)) = served::<T>(client).await && version != resource.version {
                    return;
                }
            }
        }
    }
}

/// Returns when the API server no longer has the kind under this version.
async fn follow<T: Kind>(client: &Client, resource: &ApiResource, mirror: &Mirror, pause: &mut Pause) {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()));
    let mut listed = Vec::new();
    let mut failing = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // A watch that began again says nothing until something changes.
            () = answers(&api), if failing => {
                failing = false;
                pause.reset();
                mirror.fine::<T>();
                continue;
            }
        };
        match event {
            None => return,
            Some(Ok(Event::Init)) => listed = Vec::new(),
            Some(Ok(Event::InitApply(object))) => listed.push(reading::<T>(object)),
            Some(Ok(Event::InitDone)) => {
                mirror.replace::<T>(std::mem::take(&mut listed));
                pause.reset();
                failing = false;
                mirror.fine::<T>();
            }
            Some(Ok(Event::Apply(object))) => mirror.apply::<T>(reading::<T>(object)),
            Some(Ok(Event::Delete(object))) => mirror.delete::<T>(&key::<T>(&object)),
            Some(Err(error)) => {
                // A watch that expired is followed by another list, at once and in silence.
                if matches!(&error, watcher::Error::WatchError(status) if status.code == 410) {
                    continue;
                }
                let gone = matches!(
                    &error,
                    watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404
                );
                if !failing {
                    failing = true;
                    mirror.failing::<T>(with_causes(&error));
                }
                sleep(pause.next()).await;
                if gone {
                    return;
                }
            }
        }
    }
}

/// Returns when the API server answers for the kind.
async fn answers(api: &Api<DynamicObject>) {
    let mut pause = Pause::default();
    while api.list_metadata(&ListParams::default().limit(1)).await.is_err() {
        sleep(pause.next()).await;
    }
}

/// Reads an object, without what nobody here needs of it.
pub(super) fn reading<T: Kind>(object: DynamicObject) -> Reading<T> {
    let key = key::<T>(&object);
    let DynamicObject { mut metadata, mut data, .. } = object;
    prune::metadata(&mut metadata);
    prune::content(T::KIND, &mut data);
    let status = is_custom::<T>().then(|| prune::status(&mut data));
    if let (Value::Object(fields), Ok(metadata)) = (&mut data, serde_json::to_value(&metadata)) {
        fields.insert("metadata".into(), metadata);
    }
    let (value, faults) = read::<T>(data);
    let object = object_ref::<T>(&key);
    let problems = faults
        .into_iter()
        .map(|fault| Problem {
            object: Some(object.clone()),
            field: path_text(&fault.path),
            ..Problem::new(fault.severity, fault.reason, fault.fix)
        })
        .collect();
    Reading { key, value, problems, status }
}

fn key<T: Kind>(object: &DynamicObject) -> Key {
    let namespace = object.metadata.namespace.clone().filter(|_| T::NAMESPACED).unwrap_or_default();
    Key::new(namespace, object.metadata.name.clone().unwrap_or_default())
}

pub(super) fn resource<T: Kind>(version: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(T::GROUP, version, T::KIND))
}

/// The name of the CustomResourceDefinition of a kind.
pub(super) fn definition(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}
