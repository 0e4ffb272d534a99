//! Settings of filters for a part of the routes (`typed_per_filter_config`).
//!
//! Tulle's control plane writes those of a route's faults, cross-origin rules and sessions. The latter two are marked as optional,
//! since proxyless gRPC has neither and would refuse the whole configuration. Whoever reads may pass over what is optional.
//! Of filters for authorization and rate limits, others say more for a part of the routes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
use envoy_types::pb::google::protobuf::Any;

use super::session;
use crate::model::{FilterOverrides, Route, RouteAction, Session};
use crate::xds::error::{At, Decoded, FieldError, unsupported};
use crate::xds::listener::replaceable;
use crate::xds::proto;

/// The name of Envoy's filter for sessions.
pub(in crate::xds) const SESSION: &str = "envoy.filters.http.stateful_session";

/// What a route says of filters.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) session: Option<Session>,
    pub(super) overrides: FilterOverrides,
}

pub(super) fn encode(route: &Route) -> HashMap<String, Any> {
    let mut settings = encode_overrides(&route.filters);
    if let Some(session) = session_of(route) {
        let config = Some(proto::any(&session::encode(session)));
        let optional = pb::FilterConfig { config, is_optional: true, disabled: false };
        settings.insert(SESSION.into(), proto::any(&optional));
    }
    settings
}

pub(super) fn encode_overrides(filters: &FilterOverrides) -> HashMap<String, Any> {
    filters.iter().map(|said| (said.filter.clone(), replaceable::encode_override(said))).collect()
}

/// What keeps the sessions of a route, if it forwards.
pub(super) fn session_of(route: &Route) -> Option<&Session> {
    match &route.action {
        RouteAction::Forward(forward) => forward.session.as_ref(),
        RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => None,
    }
}

/// Reads the settings of a route, whose sessions live for `watched` where their carrier does not say.
pub(super) fn decode(filters: &HashMap<String, Any>, watched: Option<Duration>) -> Decoded<Settings> {
    let mut settings = Settings::default();
    // In the order of their names, so that of several errors always the same is reported.
    for (name, config) in filters.iter().collect::<BTreeMap<_, _>>() {
        decode_filter(name, config, watched, &mut settings).at_key("typed_per_filter_config", name)?;
    }
    Ok(settings)
}

/// Reads what a backend says of the listener's filters.
pub(super) fn decode_backend(filters: &HashMap<String, Any>) -> Decoded<FilterOverrides> {
    let settings = decode(filters, None)?;
    unsupported(settings.session.is_some(), "stateful_session", "put it on the route")
        .at("typed_per_filter_config")?;
    Ok(settings.overrides)
}

fn decode_filter(
    name: &str,
    config: &Any,
    watched: Option<Duration>,
    settings: &mut Settings,
) -> Decoded<()> {
    if !proto::is::<pb::FilterConfig>(config) {
        return match known(name, config, watched, settings)? {
            true => Ok(()),
            false => Err(unknown(config)),
        };
    }
    let wrapper: pb::FilterConfig = proto::unpack(config)?;
    if wrapper.disabled {
        // Without settings of its own a route has no sessions anyway.
        if name != SESSION {
            settings.overrides.push(Arc::new(replaceable::decode_disabled(name)?));
        }
        return Ok(());
    }
    let is_known = match &wrapper.config {
        Some(inner) => known(name, inner, watched, settings)?,
        None => false,
    };
    if is_known || wrapper.is_optional {
        return Ok(());
    }
    Err(unknown(wrapper.config.as_ref().unwrap_or(config)))
}

/// Takes the settings of a filter; false for one that is not known.
fn known(name: &str, config: &Any, watched: Option<Duration>, settings: &mut Settings) -> Decoded<bool> {
    if proto::is::<StatefulSessionPerRoute>(config) {
        check_session_name(name)?;
        settings.session = session::decode(proto::unpack(config)?, watched)?;
    } else if let Some(said) = replaceable::decode_override(name, config)? {
        settings.overrides.push(Arc::new(said));
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Sessions are settings of one filter, which a listener has or not.
pub(in crate::xds) fn check_session_name(name: &str) -> Decoded<()> {
    match name {
        SESSION => Ok(()),
        _ => Err(FieldError::new(format!("sessions are known under one name: call it {SESSION}"))),
    }
}

fn unknown(config: &Any) -> FieldError {
    FieldError::new(format!(
        "{:?} can't be set for a part of the routes: put it in the listener, or mark it is_optional",
        proto::inner_type(config)
    ))
}
