//! Fields that other control planes set where Tulle's sets none: what they come to, and which values are refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_pb;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::google::protobuf::{self, Any};

use super::*;
use crate::model::*;
use crate::xds::proto;

#[test]
fn a_proxy_in_front_is_heard_in_the_versions_that_are_allowed() {
    let listener = |config: Option<proxy_pb::ProxyProtocol>, change: fn(&mut listener_pb::ListenerFilter)| {
        let mut filter = listener_pb::ListenerFilter {
            name: "envoy.filters.listener.proxy_protocol".into(),
            config_type: config
                .map(|config| listener_pb::listener_filter::ConfigType::TypedConfig(proto::any(&config))),
            ..Default::default()
        };
        change(&mut filter);
        let mut message = listener::encode(&super::foreign::any_listener());
        message.listener_filters = vec![filter];
        listener::decode(message).map(|listener| listener.proxy_protocol).map_err(|error| error.to_string())
    };
    let both = proxy_pb::ProxyProtocol::default();
    let heard = |optional, version_1, version_2| Ok(Some(ProxyProtocol { optional, version_1, version_2 }));
    assert_eq!(listener(Some(both.clone()), |_| ()), heard(false, true, true));
    let without = |versions: &[i32], optional| proxy_pb::ProxyProtocol {
        disallowed_versions: versions.to_vec(),
        allow_requests_without_proxy_protocol: optional,
        ..Default::default()
    };
    assert_eq!(listener(Some(without(&[0], true)), |_| ()), heard(true, false, true));
    assert_eq!(listener(Some(without(&[1], false)), |_| ()), heard(false, true, false));
    let error = listener(Some(without(&[0, 1], false)), |_| ()).unwrap_err();
    assert!(error.contains("listener_filters[0].typed_config.disallowed_versions: names both"), "{error}");
    let error = listener(None, |_| ()).unwrap_err();
    assert!(error.contains("listener_filters[0].typed_config: is missing"), "{error}");
    let rules =
        proxy_pb::ProxyProtocol { rules: vec![proxy_pb::proxy_protocol::Rule::default()], ..both.clone() };
    assert!(listener(Some(rules), |_| ()).unwrap_err().contains("typed_config.rules: is not supported"));
    let error = listener(Some(both), |filter| filter.filter_disabled = Some(Default::default())).unwrap_err();
    assert!(error.contains("listener_filters[0].filter_disabled: is not supported"), "{error}");
}

#[test]
fn tls_and_http_are_looked_for_where_the_listener_says_so() {
    let listener = |configs: &[&Any], change: fn(&mut listener_pb::ListenerFilter)| {
        let filter = |config: &&Any| {
            let mut filter = listener_pb::ListenerFilter {
                name: "any name".into(),
                config_type: Some(listener_pb::listener_filter::ConfigType::TypedConfig((*config).clone())),
                ..Default::default()
            };
            change(&mut filter);
            filter
        };
        let mut message = listener::encode(&super::foreign::any_listener());
        message.listener_filters = configs.iter().map(filter).collect();
        let looks = |listener: Listener| [listener.tls_inspector, listener.http_inspector];
        listener::decode(message).map(looks).map_err(|error| error.to_string())
    };
    let [tls, http] = [proto::any(&TlsInspector::default()), proto::any(&HttpInspector::default())];
    assert_eq!(listener(&[], |_| ()), Ok([false, false]));
    assert_eq!(listener(&[&tls], |_| ()), Ok([true, false]));
    assert_eq!(listener(&[&http], |_| ()), Ok([false, true]));
    assert_eq!(listener(&[&http, &tls], |_| ()), Ok([true, true]));
    for (config, name) in
        [(&tls, "envoy.filters.listener.tls_inspector"), (&http, "envoy.filters.listener.http_inspector")]
    {
        let error =
            listener(&[config], |filter| filter.filter_disabled = Some(Default::default())).unwrap_err();
        assert!(error.contains("listener_filters[0].filter_disabled: is not supported"), "{error}");
        let mut message = listener::encode(&super::foreign::any_listener());
        message.listener_filters =
            vec![listener_pb::ListenerFilter { name: name.into(), ..Default::default() }];
        let error = listener::decode(message).unwrap_err().to_string();
        assert!(error.contains("listener_filters[0].typed_config: is missing"), "{error}");
    }
}

#[test]
fn retries_go_by_headers_that_must_be_valid() {
    let policy = |change: fn(&mut route_pb::RetryPolicy)| {
        let mut policy = route_pb::RetryPolicy { retry_on: "retriable-headers".into(), ..Default::default() };
        change(&mut policy);
        let action = route_pb::RouteAction {
            cluster_specifier: Some(route_pb::route_action::ClusterSpecifier::Cluster("a".into())),
            retry_policy: Some(policy),
            ..Default::default()
        };
        super::foreign::route_to(action).map(|route| match route.action {
            RouteAction::Forward(Forward { retry: Some(retry), .. }) => retry,
            other => panic!("{other:?}"),
        })
    };
    let limited = |names: &[&str], max: Option<Duration>| {
        let header = |name: &&str| route_pb::retry_policy::ResetHeader { name: (*name).into(), format: 1 };
        Some(route_pb::retry_policy::RateLimitedRetryBackOff {
            reset_headers: names.iter().map(header).collect(),
            max_interval: max.map(proto::duration),
        })
    };
    let retry = policy(|policy| {
        policy.retriable_headers = vec![route_pb::HeaderMatcher { name: "X-A".into(), ..Default::default() }];
    });
    let retry = retry.unwrap();
    assert_eq!((&retry.on[..], retry.headers[0].name.as_str()), (&[RetryOn::Headers][..], "x-a"));
    assert_eq!(retry.rate_limited, None);
    let wrong = policy(|policy| {
        policy.retriable_request_headers =
            vec![route_pb::HeaderMatcher { name: "a b".into(), ..Default::default() }];
    });
    assert!(wrong.unwrap_err().contains("retry_policy.retriable_request_headers[0].name"));
    let field = "retry_policy.rate_limited_retry_back_off.";
    let set = |limited| {
        let mut policy = route_pb::RetryPolicy { retry_on: "5xx".into(), ..Default::default() };
        policy.rate_limited_retry_back_off = limited;
        let action = route_pb::RouteAction {
            cluster_specifier: Some(route_pb::route_action::ClusterSpecifier::Cluster("a".into())),
            retry_policy: Some(policy),
            ..Default::default()
        };
        super::foreign::route_to(action)
    };
    let error = set(limited(&[], None)).unwrap_err();
    assert!(error.contains(&format!("{field}reset_headers: is empty")), "{error}");
    let error = set(limited(&["a b"], None)).unwrap_err();
    assert!(error.contains(&format!("{field}reset_headers[0].name")), "{error}");
    let error = set(limited(&["a"], Some(Duration::ZERO))).unwrap_err();
    assert!(error.contains(&format!("{field}max_interval: is zero")), "{error}");
    let RouteAction::Forward(forward) = set(limited(&["a"], None)).unwrap().action else { panic!() };
    let limited = forward.retry.unwrap().rate_limited.unwrap();
    assert_eq!((limited.reset[0].is_time, limited.max), (true, Duration::from_secs(300)));
}

#[test]
fn old_settings_of_connections_stand_where_no_new_ones_do() {
    let mut message = cluster_pb::Cluster {
        name: "c".into(),
        load_assignment: Some(endpoint_pb::ClusterLoadAssignment::default()),
        ..Default::default()
    };
    let seconds = |seconds| Some(protobuf::Duration { seconds, nanos: 0 });
    #[expect(deprecated)]
    let old =
        |message: &mut cluster_pb::Cluster, options| message.common_http_protocol_options = Some(options);
    old(
        &mut message,
        core::HttpProtocolOptions {
            idle_timeout: seconds(7),
            max_requests_per_connection: proto::u32_value(3),
            ..Default::default()
        },
    );
    let decoded = cluster::decode(message.clone()).unwrap();
    assert_eq!(decoded.idle_timeout, Some(Duration::from_secs(7)));
    assert_eq!(decoded.max_requests_per_connection, Some(3));
    old(&mut message, core::HttpProtocolOptions { idle_timeout: seconds(-1), ..Default::default() });
    let error = cluster::decode(message.clone()).unwrap_err().to_string();
    assert!(error.contains("common_http_protocol_options.idle_timeout: -1 s"), "{error}");
    old(
        &mut message,
        core::HttpProtocolOptions { max_headers_count: proto::u32_value(3), ..Default::default() },
    );
    let error = cluster::decode(message).unwrap_err().to_string();
    assert!(error.contains("common_http_protocol_options.max_headers_count: is not supported"), "{error}");
}

#[test]
fn sessions_stay_where_they_are_told_to() {
    let sessions = |statuses: Option<&[core::HealthStatus]>| {
        let statuses = statuses.map(|statuses| core::HealthStatusSet {
            statuses: statuses.iter().map(|status| *status as i32).collect(),
        });
        let common =
            cluster_pb::cluster::CommonLbConfig { override_host_status: statuses, ..Default::default() };
        let message = cluster_pb::Cluster {
            name: "c".into(),
            load_assignment: Some(endpoint_pb::ClusterLoadAssignment::default()),
            common_lb_config: Some(common),
            ..Default::default()
        };
        let SessionHealth { healthy, draining, unhealthy } = cluster::decode(message).unwrap().sessions;
        [healthy, draining, unhealthy]
    };
    use core::HealthStatus::{Degraded, Draining, Timeout, Unhealthy, Unknown};
    assert_eq!(sessions(None), [true, false, false]);
    assert_eq!(sessions(Some(&[])), [false, false, false]);
    assert_eq!(sessions(Some(&[Unknown, Draining])), [true, true, false]);
    assert_eq!(sessions(Some(&[Degraded, Unhealthy])), [true, false, true]);
    assert_eq!(sessions(Some(&[Timeout])), [false, false, true]);
}
