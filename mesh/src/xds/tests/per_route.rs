//! What parts of the routes say of filters: who is reached by it, and what is refused.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::rbac::v3 as rbac_pb;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as concurrency;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault_pb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as rate_limit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use prost::Message;

use super::foreign::{decode_filters, decode_http_filters};
use super::*;
use crate::model::*;
use crate::xds::proto;

#[test]
fn the_nearest_settings_of_a_name_stand_and_the_rest_are_inherited() {
    let configuration = configuration(
        &[("a", deny()), ("b", off()), ("c", deny())],
        &[("b", deny()), ("d", limit(1))],
        vec![route(&[]), route(&[("a", off()), ("d", limit(2))])],
    );
    let [plain, own] = <[Route; 2]>::try_from(decoded(configuration)).expect("two");
    let said = |route: &Route| -> Vec<(String, Option<bool>)> {
        let mut said: Vec<_> = route
            .filters
            .iter()
            .map(|said| {
                let is_limit =
                    |settings: &FilterSettings| matches!(settings, FilterSettings::LocalRateLimit(_));
                (said.filter.clone(), said.settings.as_ref().map(is_limit))
            })
            .collect();
        said.sort();
        said
    };
    let expected = |a| [("a", a), ("b", Some(false)), ("c", Some(false)), ("d", Some(true))];
    let named = |said: [(&str, Option<bool>); 4]| said.map(|(name, said)| (name.to_owned(), said));
    assert_eq!(said(&plain), named(expected(Some(false))));
    assert_eq!(said(&own), named(expected(None)));
    assert_eq!(burst(&plain, "d"), 1);
    assert_eq!(burst(&own, "d"), 2);
}

#[test]
fn routes_share_what_their_host_says_and_hosts_do_not() {
    let routes = vec![route(&[]), route(&[])];
    let mut message = configuration(&[], &[("d", limit(1))], routes);
    let other = pb::VirtualHost { domains: vec!["other".into()], ..message.virtual_hosts[0].clone() };
    message.virtual_hosts.push(other);
    let decoded = route::decode(message).unwrap();
    let said = |host: usize, route: usize| &decoded.virtual_hosts[host].routes[route].filters[0];
    assert!(Arc::ptr_eq(said(0, 0), said(0, 1)));
    assert!(!Arc::ptr_eq(said(0, 0), said(1, 0)) && said(0, 0) == said(1, 0));
}

#[test]
fn a_backend_says_for_itself() {
    let fault = fault_pb::HttpFault {
        abort: Some(fault_pb::FaultAbort {
            error_type: Some(fault_pb::fault_abort::ErrorType::HttpStatus(503)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let backend = |settings: &[(&str, Any)]| {
        let mut message = route(&[("a", deny())]);
        let cluster = pb::weighted_cluster::ClusterWeight {
            name: "c".into(),
            weight: proto::u32_value(1),
            typed_per_filter_config: map(settings),
            ..Default::default()
        };
        let weighted = pb::WeightedCluster { clusters: vec![cluster], ..Default::default() };
        let Some(pb::route::Action::Route(action)) = &mut message.action else { panic!() };
        action.cluster_specifier = Some(pb::route_action::ClusterSpecifier::WeightedClusters(weighted));
        route::decode(configuration(&[], &[], vec![message]))
    };
    let settings = [("a", off()), (FAULT_FILTER, proto::any(&fault))];
    let route = backend(&settings).unwrap().virtual_hosts.remove(0).routes.remove(0);
    let RouteAction::Forward(forward) = &route.action else { panic!("{route:?}") };
    let [Backend { filters, .. }] = &forward.backends[..] else { panic!("{forward:?}") };
    assert_eq!((filters[0].filter.as_str(), &filters[0].settings), ("a", &None));
    let is_fault = matches!(filters[1].settings, Some(FilterSettings::Fault(_)));
    assert_eq!((filters[1].filter.as_str(), is_fault), (FAULT_FILTER, true));
    assert_eq!(route.filters.len(), 1);
    let cors = envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy::default();
    let route = backend(&[("cors", proto::any(&cors))]).unwrap().virtual_hosts.remove(0).routes.remove(0);
    let RouteAction::Forward(forward) = &route.action else { panic!("{route:?}") };
    let Some(FilterSettings::Cors(Some(cors))) = &forward.backends[0].filters[0].settings else { panic!() };
    let is_cors = |said: &Arc<FilterOverride>| matches!(said.settings, Some(FilterSettings::Cors(_)));
    assert!(cors.forward_unmatched && !route.filters.iter().any(is_cors));
}

#[test]
fn filters_that_do_nothing_keep_their_place_for_the_routes() {
    let none = http_rbac::Rbac::default();
    let unlimited = rate_limit::LocalRateLimit { stat_prefix: "x".into(), ..Default::default() };
    let filters = decode_filters(vec![("rbac", proto::any(&none)), ("limit", proto::any(&unlimited))]);
    let settings = [FilterSettings::Authorization(Vec::new()), FilterSettings::LocalRateLimit(None)];
    let expected = ["rbac", "limit"].into_iter().zip(settings).map(|(name, settings)| {
        HttpFilter::Replaceable(ReplaceableFilter { name: name.into(), disabled: false, settings })
    });
    assert_eq!(filters, expected.collect::<Vec<_>>());
    let disabled = http_pb::HttpFilter {
        name: "rbac".into(),
        disabled: true,
        config_type: Some(http_pb::http_filter::ConfigType::TypedConfig(proto::any(&none))),
        ..Default::default()
    };
    let filters = decode_http_filters(vec![disabled]);
    assert!(matches!(&filters[..], [HttpFilter::Replaceable(filter)] if filter.disabled), "{filters:?}");
    use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
    let fault = fault_pb::HttpFault::default();
    let filters = decode_filters(vec![("f", proto::any(&fault)), ("c", proto::any(&Cors::default()))]);
    let settings = [FilterSettings::Fault(Fault::default()), FilterSettings::Cors(None)];
    let expected = ["f", "c"].into_iter().zip(settings).map(|(name, settings)| {
        HttpFilter::Replaceable(ReplaceableFilter { name: name.into(), disabled: false, settings })
    });
    assert_eq!(filters, expected.collect::<Vec<_>>());
}

#[test]
fn a_limit_says_how_it_answers() {
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    let mut message: rate_limit::LocalRateLimit = proto::unpack(&limit(1)).unwrap();
    let answer = |message: &rate_limit::LocalRateLimit| {
        let filters = decode_filters(vec![("limit", proto::any(message))]);
        let [HttpFilter::Replaceable(ReplaceableFilter { settings, .. })] = &filters[..] else { panic!() };
        let FilterSettings::LocalRateLimit(Some(limit)) = settings else { panic!("{settings:?}") };
        limit.answer.clone()
    };
    assert_eq!(answer(&message), RateLimitAnswer::default());
    for (code, status) in [(200, 429), (429, 429), (503, 503)] {
        message.status = Some(HttpStatus { code });
        assert_eq!(answer(&message).status.as_u16(), status);
    }
    message.rate_limited_as_resource_exhausted = true;
    let header = core_pb::HeaderValue { key: "x".into(), value: "y".into(), ..Default::default() };
    message.response_headers_to_add =
        vec![core_pb::HeaderValueOption { header: Some(header), ..Default::default() }];
    let answer = answer(&message);
    assert!(answer.resource_exhausted);
    assert_eq!(answer.headers.change[0].name, "x");
}

#[test]
fn what_would_have_no_effect_is_refused() {
    let refused = |name: &str, config: Any| {
        route::decode(configuration(&[], &[], vec![route(&[(name, config)])])).unwrap_err().to_string()
    };
    let at = |name: &str| format!("virtual_hosts[0].routes[0].typed_per_filter_config[{name:?}]");
    let name = "envoy.filters.http.adaptive_concurrency";
    let error = refused(name, off());
    assert!(error.contains(&format!("{}: can't be left out for a part", at(name))), "{error}");
    let unlimited = rate_limit::LocalRateLimit { stat_prefix: "x".into(), ..Default::default() };
    let error = refused("limit", proto::any(&unlimited));
    assert!(error.ends_with(&format!("{}.token_bucket: is missing: set it", at("limit"))), "{error}");
    let rules = rbac_pb::Rbac { action: 9, ..Default::default() };
    let per_route =
        http_rbac::RbacPerRoute { rbac: Some(http_rbac::Rbac { rules: Some(rules), ..Default::default() }) };
    let error = refused("auth", proto::any(&per_route));
    assert!(error.ends_with(&format!("{}.rbac.rules.action: 9 is not an action", at("auth"))), "{error}");
    let unknown = proto::any(&concurrency::AdaptiveConcurrency::default());
    assert!(refused("x", unknown).contains("can't be set for a part of the routes"));
}

fn deny() -> Any {
    let rules = rbac_pb::Rbac { action: rbac_pb::rbac::Action::Deny as i32, ..Default::default() };
    proto::any(&http_rbac::RbacPerRoute {
        rbac: Some(http_rbac::Rbac { rules: Some(rules), ..Default::default() }),
    })
}

fn off() -> Any {
    proto::any(&pb::FilterConfig { config: None, is_optional: false, disabled: true })
}

fn limit(burst: u32) -> Any {
    let all = || Some(matching::runtime_fraction(PerMillion::ALL));
    proto::any(&rate_limit::LocalRateLimit {
        stat_prefix: "limit".into(),
        token_bucket: Some(TokenBucket {
            max_tokens: burst,
            tokens_per_fill: None,
            fill_interval: Some(proto::duration(std::time::Duration::from_secs(1))),
        }),
        filter_enabled: all(),
        filter_enforced: all(),
        ..Default::default()
    })
}

fn burst(route: &Route, filter: &str) -> u32 {
    let said = route.filters.iter().find(|said| said.filter == filter).expect("it says something");
    match &said.settings {
        Some(FilterSettings::LocalRateLimit(Some(limit))) => limit.bucket.burst,
        other => panic!("{other:?}"),
    }
}

fn map(settings: &[(&str, Any)]) -> std::collections::HashMap<String, Any> {
    settings.iter().map(|(name, config)| ((*name).to_owned(), config.clone())).collect()
}

fn route(settings: &[(&str, Any)]) -> pb::Route {
    let action = pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster("a".into())),
        ..Default::default()
    };
    pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(pb::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(pb::route::Action::Route(action)),
        typed_per_filter_config: map(settings),
        ..Default::default()
    }
}

fn configuration(
    settings: &[(&str, Any)],
    of_host: &[(&str, Any)],
    routes: Vec<pb::Route>,
) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name: "r".into(),
        typed_per_filter_config: map(settings),
        virtual_hosts: vec![pb::VirtualHost {
            name: "h".into(),
            domains: vec!["*".into()],
            routes,
            typed_per_filter_config: map(of_host),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn decoded(configuration: pb::RouteConfiguration) -> Vec<Route> {
    // Through the bytes, as it comes.
    let bytes = configuration.encode_to_vec();
    match Resource::decode(type_url::ROUTE, &bytes).unwrap() {
        Resource::Route(mut routes) => routes.virtual_hosts.remove(0).routes,
        other => panic!("{other:?}"),
    }
}
