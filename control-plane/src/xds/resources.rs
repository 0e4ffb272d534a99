//! The catalog of the mesh: the world's models, each encoded once, when it is first asked for.
//!
//! In: what the sources read, and the trust bundle. Out: resources by name or alias as their caller may see them, and the
//! names of those that changed. Private keys are not among them: nothing here ever holds one.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tulle_mesh::model::{Secret, SecretValue};
use tulle_mesh::xds::Resource;

use super::{Catalog, Changed, Encoded, Kind};
use crate::ca::Bundle;
use crate::caller::Caller;
use crate::source::{Loaded, Problem};

/// The name of the trust bundle, as Istio has it.
pub const TRUST_BUNDLE: &str = "ROOTCA";

/// The catalog.
pub struct Resources {
    bundle: RwLock<Arc<Encoded>>,
}

/// What an update brought.
pub struct Update {
    /// What is to be pushed.
    pub changed: Changed,
    /// What is wrong with objects.
    pub problems: Vec<Problem>,
}

impl Resources {
    /// A catalog without objects.
    pub fn new(bundle: watch::Receiver<Bundle>) -> Self {
        Self { bundle: RwLock::new(encode_bundle(&bundle.borrow())) }
    }

    /// Takes what the sources read.
    pub fn update(&self, loaded: &Loaded) -> Update {
        Update { changed: Changed::new([]), problems: loaded.problems.clone() }
    }

    /// Takes another trust bundle.
    pub fn set_bundle(&self, bundle: &Bundle) -> Changed {
        *self.bundle.write().unwrap_or_else(PoisonError::into_inner) = encode_bundle(bundle);
        Changed::new([(Kind::Secret, TRUST_BUNDLE.into())])
    }
}

impl Catalog for Resources {
    fn find(&self, kind: Kind, name: &str, _caller: &Caller) -> Option<Arc<Encoded>> {
        match kind {
            Kind::Secret => {
                let bundle = self.bundle.read().unwrap_or_else(PoisonError::into_inner);
                (name == TRUST_BUNDLE).then(|| Arc::clone(&bundle))
            }
            _ => None,
        }
    }

    fn names(&self, _kind: Kind, _caller: &Caller) -> Vec<Arc<str>> {
        Vec::new()
    }
}

fn encode_bundle(bundle: &Bundle) -> Arc<Encoded> {
    let value = SecretValue::TrustBundle(bundle.pem());
    let secret = Resource::Secret(Secret { name: TRUST_BUNDLE.into(), value });
    Arc::new(Encoded::new(TRUST_BUNDLE, secret.encode()))
}
