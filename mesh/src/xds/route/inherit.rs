//! What routes inherit from their virtual host and from the whole configuration.
//!
//! Tulle's own configurations have nothing there. In others, the more specific setting stands: of retries, mirrors and
//! filters the nearest is taken whole; header changes add up, the backend's first and the configuration's last, or the other
//! way round with `most_specific_header_mutations_wins`.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, RequestMirrorPolicy};
use envoy_types::pb::google::protobuf::Any;

use super::{action, filters as settings, headers, policy};
use crate::model::{FilterOverride, FilterOverrides, HeaderMutations};
use crate::xds::error::{At, Decoded, each, unsupported};

/// What the routes below inherit. All of it has been read once, so that errors name the place where it stands.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    request: HeaderMutations,
    response: HeaderMutations,
    retry: Option<pb::RetryPolicy>,
    mirrors: Vec<RequestMirrorPolicy>,
    filters: HashMap<String, Any>,
    /// What is said of the listener's filters, one object for all routes that it reaches.
    overrides: FilterOverrides,
    /// Changes of what is above come before those of what is below.
    outer_first: bool,
}

impl Inherited {
    pub(super) fn from_configuration(configuration: &pb::RouteConfiguration) -> Decoded<Self> {
        let inherited =
            Self { outer_first: configuration.most_specific_header_mutations_wins, ..Self::default() };
        inherited
            .with_headers(
                (&configuration.request_headers_to_add, &configuration.request_headers_to_remove),
                (&configuration.response_headers_to_add, &configuration.response_headers_to_remove),
            )?
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
            .with_headers(
                (&host.request_headers_to_add, &host.request_headers_to_remove),
                (&host.response_headers_to_add, &host.response_headers_to_remove),
            )?
            .with_mirrors(&host.request_mirror_policies)?
            .with_filters(&host.typed_per_filter_config)
    }

    /// What a route inherits of what is said of filters: all but what it says of them itself.
    pub(super) fn overrides_beside(&self, route: &pb::Route) -> Vec<Arc<FilterOverride>> {
        let own = &route.typed_per_filter_config;
        self.overrides.iter().filter(|said| !own.contains_key(&said.filter)).cloned().collect()
    }

    /// The route with all else that it inherits.
    pub(super) fn apply(&self, mut route: pb::Route) -> Decoded<pb::Route> {
        for (name, config) in &self.filters {
            route.typed_per_filter_config.entry(name.clone()).or_insert_with(|| config.clone());
        }
        if let Some(pb::route::Action::Route(forward)) = &mut route.action {
            if forward.retry_policy.is_none() {
                forward.retry_policy.clone_from(&self.retry);
            }
            if forward.request_mirror_policies.is_empty() {
                forward.request_mirror_policies.clone_from(&self.mirrors);
            }
        }
        self.apply_headers(&mut route)?;
        Ok(route)
    }

    fn apply_headers(&self, route: &mut pb::Route) -> Decoded<()> {
        if !self.outer_first && self.request.is_empty() && self.response.is_empty() {
            return Ok(());
        }
        let request =
            decode("request_headers", (&route.request_headers_to_add, &route.request_headers_to_remove))?;
        let response =
            decode("response_headers", (&route.response_headers_to_add, &route.response_headers_to_remove))?;
        let mut request = self.combine(request, &self.request);
        let mut response = self.combine(response, &self.response);
        if self.outer_first
            && let Some(pb::route::Action::Route(forward)) = &mut route.action
            && let Some(ClusterSpecifier::WeightedClusters(weighted)) = &mut forward.cluster_specifier
        {
            // The model applies a backend's changes first. Here they come last, so all of them move into the backends.
            for backend in &mut weighted.clusters {
                let own: Lists<'_> = (&backend.request_headers_to_add, &backend.request_headers_to_remove);
                let all = headers::then(request.clone(), &decode("request_headers", own)?);
                backend.request_headers_to_add = headers::add(&all);
                backend.request_headers_to_remove = headers::remove(&all);
                let own: Lists<'_> = (&backend.response_headers_to_add, &backend.response_headers_to_remove);
                let all = headers::then(response.clone(), &decode("response_headers", own)?);
                backend.response_headers_to_add = headers::add(&all);
                backend.response_headers_to_remove = headers::remove(&all);
            }
            (request, response) = Default::default();
        }
        route.request_headers_to_add = headers::add(&request);
        route.request_headers_to_remove = headers::remove(&request);
        route.response_headers_to_add = headers::add(&response);
        route.response_headers_to_remove = headers::remove(&response);
        Ok(())
    }

    fn with_headers(self, request: Lists<'_>, response: Lists<'_>) -> Decoded<Self> {
        let request = self.combine(decode("request_headers", request)?, &self.request);
        let response = self.combine(decode("response_headers", response)?, &self.response);
        Ok(Self { request, response, ..self })
    }

    fn with_mirrors(self, mirrors: &[RequestMirrorPolicy]) -> Decoded<Self> {
        each("request_mirror_policies", mirrors.iter().cloned(), action::decode_mirror)?;
        Ok(if mirrors.is_empty() { self } else { Self { mirrors: mirrors.to_vec(), ..self } })
    }

    fn with_filters(mut self, filters: &HashMap<String, Any>) -> Decoded<Self> {
        let overrides = settings::decode(filters, None)?.overrides;
        self.overrides.retain(|said| !filters.contains_key(&said.filter));
        self.filters.retain(|name, _| !filters.contains_key(name));
        let of_filter = |name: &String| overrides.iter().any(|said| said.filter == *name);
        let others = filters.iter().filter(|(name, _)| !of_filter(name));
        self.filters.extend(others.map(|(name, config)| (name.clone(), config.clone())));
        self.overrides.extend(overrides);
        Ok(self)
    }

    fn combine(&self, inner: HeaderMutations, outer: &HeaderMutations) -> HeaderMutations {
        if self.outer_first { headers::then(outer.clone(), &inner) } else { headers::then(inner, outer) }
    }
}

/// What to add and what to remove.
type Lists<'a> = (&'a [HeaderValueOption], &'a [String]);

fn decode(direction: &str, (add, remove): Lists<'_>) -> Decoded<HeaderMutations> {
    headers::decode(direction, add.to_vec(), remove.to_vec())
}
