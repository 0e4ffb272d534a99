//! What a cluster has now, for who looks once: the command line.
//!
//! In: one list of every kind that Tulle reads. Out: [`Loaded`], as the control plane has it when it has begun. Nothing is
//! watched, and nothing is waited for: what can't be read because of missing rights is a problem among the others.

use std::fmt;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join_all};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};

use super::is_custom;
use super::mirror::{Absence, Mirror, Reading};
use super::reflect::{reading, resource, served};
use crate::health::Health;
use crate::kubernetes::with_causes;
use crate::metrics::Metrics;
use crate::source::{Kind, KindVisitor, Loaded, Objects, Problem, Severity};

/// How many objects a response of the API server has at most.
const PAGE: u32 = 500;

/// Lists everything once.
///
/// # Errors
/// When the API server does not answer, or refuses for another reason than missing rights.
pub async fn load(client: &Client) -> Result<Loaded, LoadError> {
    let mirror = Mirror::new(Arc::<Health>::default(), Arc::<Metrics>::default());
    let mut lists = Lists { client, mirror: &mirror, all: Vec::new() };
    Objects::visit_kinds(&mut lists);
    let forbidden = try_join_all(lists.all).await?;
    let mut loaded = mirror.take().unwrap_or_default();
    loaded.problems.extend(forbidden.into_iter().flatten());
    loaded.problems.sort();
    Ok(loaded)
}

/// A list of each kind.
struct Lists<'a> {
    client: &'a Client,
    mirror: &'a Mirror,
    all: Vec<BoxFuture<'a, Result<Option<Problem>, LoadError>>>,
}

impl KindVisitor for Lists<'_> {
    fn visit<T: Kind>(&mut self) {
        let (client, mirror) = (self.client, self.mirror);
        self.all.push(Box::pin(async move {
            match list::<T>(client, mirror).await {
                Ok(()) => Ok(None),
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    mirror.replace::<T>(Vec::new());
                    Ok(Some(forbidden::<T>(&status.message)))
                }
                Err(error) => Err(LoadError { kind: T::KIND, reason: with_causes(&error) }),
            }
        }));
    }
}

/// Lists a kind, where the cluster has it.
async fn list<T: Kind>(client: &Client, mirror: &Mirror) -> Result<(), kube::Error> {
    let version = if is_custom::<T>() {
        let Some(version) = served::<T>(client).await? else {
            mirror.absent::<T>(Absence::NotInstalled);
            return Ok(());
        };
        version
    } else {
        T::VERSIONS.first().copied().unwrap_or("v1")
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource::<T>(version));
    let mut readings: Vec<Reading<T>> = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let listed = api.list(&page).await?;
        readings.extend(listed.items.into_iter().map(reading::<T>));
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    mirror.replace::<T>(readings);
    Ok(())
}

fn forbidden<T: Kind>(message: &str) -> Problem {
    Problem::new(
        Severity::Warning,
        format!("objects of kind {} can't be read: {message}", T::KIND),
        "ask as who may list them in all namespaces; until then it is as if there were none",
    )
}

/// Why a cluster can't be read.
#[derive(Debug)]
pub struct LoadError {
    kind: &'static str,
    reason: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, reason } = self;
        write!(f, "can't list objects of kind {kind}: {reason}; is the API server the right one?")
    }
}

impl std::error::Error for LoadError {}
