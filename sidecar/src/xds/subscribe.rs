//! What is asked for, and in which requests.
//!
//! In: the names that are wanted. Out: the requests that bring the server's view of a stream up to them. A type is not
//! mentioned before one of its resources is wanted, so that no server takes an empty request for "everything". An answer
//! to a response (ACK or NACK) never changes a subscription.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use tulle_mesh::xds::Kind;

use super::cache::{Names, PerKind};

/// The longest reason in a NACK, in bytes.
const MAX_REASON: usize = 4096;

/// Clusters before their endpoints, listeners before their routes: as a server sends them.
const ORDER: [Kind; 6] =
    [Kind::Secret, Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route, Kind::Dns];

/// What one stream has been asked for.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    node: Node,
    /// The node goes with the first message of a stream.
    introduced: bool,
    /// `None`: not mentioned yet on this stream.
    sent: PerKind<Option<BTreeSet<Arc<str>>>>,
}

impl Subscriptions {
    /// No stream yet.
    pub(crate) fn new(node: Node) -> Self {
        Self { node, introduced: false, sent: PerKind::default() }
    }

    /// What the sidecar says of itself.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// A new stream knows nothing.
    pub(crate) fn reset(&mut self) {
        self.introduced = false;
        self.sent = PerKind::default();
    }

    /// The requests that are due; `versions` says what is held of a type.
    pub(crate) fn requests(
        &mut self,
        wanted: &Names,
        versions: impl Fn(Kind) -> HashMap<String, String>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for kind in ORDER {
            let names = &wanted[kind];
            let request = match &self.sent[kind] {
                None if names.is_empty() => continue,
                None => DeltaDiscoveryRequest {
                    resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
                    initial_resource_versions: versions(kind),
                    ..self.request(kind)
                },
                Some(sent) if sent == names => continue,
                Some(sent) => DeltaDiscoveryRequest {
                    resource_names_subscribe: names.difference(sent).map(ToString::to_string).collect(),
                    resource_names_unsubscribe: sent.difference(names).map(ToString::to_string).collect(),
                    ..self.request(kind)
                },
            };
            self.sent[kind] = Some(names.clone());
            requests.push(self.introduce(request));
        }
        requests
    }

    /// The answer to a response: exactly one for each.
    pub(crate) fn answer(
        &mut self,
        type_url: &str,
        nonce: String,
        outcome: Result<(), Vec<String>>,
    ) -> DeltaDiscoveryRequest {
        const INVALID_ARGUMENT: i32 = 3;
        let error_detail = outcome.err().map(|problems| Status {
            code: INVALID_ARGUMENT,
            message: shorten(problems.join("; ")),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce,
            error_detail,
            ..Default::default()
        };
        self.introduce(request)
    }

    fn request(&self, kind: Kind) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..Default::default() }
    }

    fn introduce(&mut self, mut request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
        if !self.introduced {
            request.node = Some(self.node.clone());
            self.introduced = true;
        }
        request
    }
}

/// The type of a response, or the problem with it.
///
/// # Errors
/// When the type is none that was asked for.
pub(crate) fn kind_of(response: &DeltaDiscoveryResponse) -> Result<Kind, Vec<String>> {
    Kind::from_type_url(&response.type_url)
        .ok_or_else(|| vec![format!("{:?} is not a type of resource that was asked for", response.type_url)])
}

fn shorten(mut text: String) -> String {
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
