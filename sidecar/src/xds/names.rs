//! What names of the mesh mean, for the resolver.
//!
//! In: questions for names. Out: answers, at once where the name is held, else when the control plane has said what it
//! means. Each name that was asked for stays subscribed to until nobody has asked for a while, so that its answer is
//! always that of now.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tulle_mesh::model::DnsName;

/// How many questions wait to be looked at.
const QUESTIONS: usize = 256;

/// Where the resolver asks.
#[derive(Clone, Debug)]
pub(crate) struct MeshNames(mpsc::Sender<NameQuestion>);

/// A question, and where its answer goes.
#[derive(Debug)]
pub(crate) struct NameQuestion {
    pub(super) name: Arc<str>,
    pub(super) answer: oneshot::Sender<NameAnswer>,
}

#[cfg(test)]
impl NameQuestion {
    /// The name, and where its answer goes.
    pub(crate) fn into_parts(self) -> (Arc<str>, oneshot::Sender<NameAnswer>) {
        (self.name, self.answer)
    }
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameAnswer {
    /// What it means.
    Held(Arc<DnsName>),
    /// The mesh does not have it.
    Absent,
    /// Nobody can say: the control plane is away.
    Unavailable,
}

impl MeshNames {
    /// A pair: what the resolver holds, and what the engine answers.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<NameQuestion>) {
        let (questions, incoming) = mpsc::channel(QUESTIONS);
        (Self(questions), incoming)
    }

    /// What a name means, in any of its forms, in lower case. It waits for as long as the control plane takes.
    pub(crate) async fn ask(&self, name: &str) -> NameAnswer {
        let (answer, question) = oneshot::channel();
        // Without a receiver the sidecar is on its way out.
        match self.0.send(NameQuestion { name: name.into(), answer }).await {
            Ok(()) => question.await.unwrap_or(NameAnswer::Unavailable),
            Err(_) => NameAnswer::Unavailable,
        }
    }
}
