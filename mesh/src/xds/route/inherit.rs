//! What routes inherit from their virtual host and from the whole configuration.
//!
//! Tulle's own configurations have nothing there. In others, the more specific setting stands: of retries, mirrors and
//! filters the nearest is taken whole, of cross-origin rules each field. Header changes stay where they are.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, RequestMirrorPolicy};
use envoy_types::pb::google::protobuf::Any;

use super::{cors, filters as settings, mirror, policy};
use crate::model::{FilterOverride, FilterOverrides, FilterSettings};
use crate::xds::error::{At, Decoded, each, unsupported};

/// What the routes below inherit. All of it has been read once, so that errors name the place where it stands.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    retry: Option<pb::RetryPolicy>,
    mirrors: Vec<RequestMirrorPolicy>,
    filters: HashMap<String, Any>,
    /// What is said of the listener's filters, one object for all routes that it reaches.
    overrides: FilterOverrides,
}

impl Inherited {
    pub(super) fn from_configuration(configuration: &pb::RouteConfiguration) -> Decoded<Self> {
        Self::default()
            .with_mirrors(&configuration.request_mirror_policies)?
            .with_filters(&configuration.typed_per_filter_config)
    }

    pub(super) fn with_host(self, host: &pb::VirtualHost) -> Decoded<Self> {
        unsupported(
            host.retry_policy_typed_config.is_some(),
            "retry_policy_typed_config",
            "use retry_policy",
        )?;
        if let Some(retry) = &host.retry_policy {
            policy::decode_retry(retry.clone()).at("retry_policy")?;
        }
        Self { retry: host.retry_policy.clone(), ..self }
            .with_mirrors(&host.request_mirror_policies)?
            .with_filters(&host.typed_per_filter_config)
    }

    /// What a route inherits of what is said of filters: all but what it says of them itself.
    pub(super) fn overrides_beside(&self, route: &pb::Route) -> Vec<Arc<FilterOverride>> {
        let own = &route.typed_per_filter_config;
        self.overrides.iter().filter(|said| !own.contains_key(&said.filter)).cloned().collect()
    }

    /// The route with all else that it inherits.
    pub(super) fn apply(&self, mut route: pb::Route) -> pb::Route {
        below(&self.filters, &mut route.typed_per_filter_config);
        if let Some(pb::route::Action::Route(forward)) = &mut route.action {
            if let Some(ClusterSpecifier::WeightedClusters(weighted)) = &mut forward.cluster_specifier {
                for cluster in &mut weighted.clusters {
                    near_cors(&route.typed_per_filter_config, &mut cluster.typed_per_filter_config);
                }
            }
            if forward.retry_policy.is_none() {
                forward.retry_policy.clone_from(&self.retry);
            }
            if forward.request_mirror_policies.is_empty() {
                forward.request_mirror_policies.clone_from(&self.mirrors);
            }
        }
        route
    }

    fn with_mirrors(self, mirrors: &[RequestMirrorPolicy]) -> Decoded<Self> {
        each("request_mirror_policies", mirrors.iter().cloned(), mirror::decode_mirror)?;
        Ok(if mirrors.is_empty() { self } else { Self { mirrors: mirrors.to_vec(), ..self } })
    }

    fn with_filters(mut self, filters: &HashMap<String, Any>) -> Decoded<Self> {
        let mut overrides = settings::decode(filters, None)?.overrides;
        // Cross-origin rules are inherited field by field.
        overrides.retain(|said| !matches!(said.settings, Some(FilterSettings::Cors(_))));
        self.overrides.retain(|said| !filters.contains_key(&said.filter));
        let of_filter = |name: &String| overrides.iter().any(|said| said.filter == *name);
        let others = filters.iter().filter(|(name, _)| !of_filter(name));
        let mut nearer: HashMap<_, _> = others.map(|(name, config)| (name.clone(), config.clone())).collect();
        self.filters.retain(|name, _| !of_filter(name));
        below(&self.filters, &mut nearer);
        self.filters = nearer;
        self.overrides.extend(overrides);
        Ok(self)
    }
}

/// Settings, with those from above of which they say nothing.
fn below(above: &HashMap<String, Any>, own: &mut HashMap<String, Any>) {
    near_cors(above, own);
    for (name, config) in above {
        own.entry(name.clone()).or_insert_with(|| config.clone());
    }
}

/// Cross-origin rules have their fields from above one by one.
fn near_cors(above: &HashMap<String, Any>, own: &mut HashMap<String, Any>) {
    for (name, near) in own {
        if let Some(both) = above.get(name).and_then(|far| cors::inherit(near, far)) {
            *near = both;
        }
    }
}
