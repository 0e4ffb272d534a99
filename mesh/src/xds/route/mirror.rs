//! Copies of requests.
//!
//! Each change to a copy's head is a level of its own, so that they are made in their order.

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as rules;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::headers;
use crate::model::{HeaderMutations, Mirror, MirrorHost, PerMillion};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, required, unsupported};
use crate::xds::matching;

pub(super) fn encode_mirror(mirror: &Mirror) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster: mirror.cluster.clone(),
        runtime_fraction: Some(matching::runtime_fraction(mirror.fraction)),
        disable_shadow_host_suffix_append: mirror.host == MirrorHost::Kept,
        host_rewrite_literal: match &mirror.host {
            MirrorHost::Literal(host) => host.clone(),
            MirrorHost::Kept | MirrorHost::Shadow => String::new(),
        },
        request_headers_mutations: mirror.request_headers.iter().flat_map(encode_changes).collect(),
        ..Default::default()
    }
}

pub(super) fn decode_mirror(mirror: RequestMirrorPolicy) -> Decoded<Mirror> {
    unsupported(!mirror.cluster_header.is_empty(), "cluster_header", "use cluster")?;
    let fraction = mirror.runtime_fraction;
    Ok(Mirror {
        cluster: non_empty(mirror.cluster, "cluster")?,
        fraction: fraction
            .map_or(Ok(PerMillion::ALL), matching::decode_runtime_fraction)
            .at("runtime_fraction")?,
        host: match (mirror.host_rewrite_literal, mirror.disable_shadow_host_suffix_append) {
            (host, _) if !host.is_empty() => MirrorHost::Literal(host),
            (_, true) => MirrorHost::Kept,
            (_, false) => MirrorHost::Shadow,
        },
        request_headers: each("request_headers_mutations", mirror.request_headers_mutations, decode_change)?,
    })
}

fn encode_changes(changes: &HeaderMutations) -> impl Iterator<Item = rules::HeaderMutation> {
    let removals = headers::remove(changes).into_iter().map(Action::Remove);
    let additions = headers::add(changes).into_iter().map(Action::Append);
    removals.chain(additions).map(|action| rules::HeaderMutation { action: Some(action) })
}

fn decode_change(change: rules::HeaderMutation) -> Decoded<HeaderMutations> {
    match required(change.action, "action")? {
        Action::Remove(name) => headers::decode("remove", Vec::new(), vec![name]),
        Action::Append(option) => headers::decode("append", vec![option], Vec::new()),
        Action::RemoveOnMatch(_) => {
            Err(FieldError::new("is not supported: use remove")).at("remove_on_match")
        }
    }
}
