//! Settings of filters for a part of the routes (`typed_per_filter_config`).
//!
//! Written are those of a route's faults, cross-origin rules and sessions. The latter two are marked as optional, since
//! proxyless gRPC has neither and would refuse the whole configuration. Whoever reads may pass over what is optional.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
use envoy_types::pb::google::protobuf::Any;

use super::{cors, session};
use crate::model::{Cors, Fault, Route, RouteAction, Session};
use crate::xds::error::{At, Decoded, FieldError};
use crate::xds::{fault, proto};

/// The name of Envoy's filter for cross-origin requests, and so of its settings on a route.
pub(in crate::xds) const CORS: &str = "envoy.filters.http.cors";
/// The name of Envoy's filter for sessions.
pub(in crate::xds) const SESSION: &str = "envoy.filters.http.stateful_session";

/// What a route says of filters.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) fault: Option<Fault>,
    pub(super) cors: Option<Cors>,
    pub(super) session: Option<Session>,
}

pub(super) fn encode(route: &Route) -> HashMap<String, Any> {
    let mut settings = HashMap::new();
    if let Some(fault) = &route.fault {
        settings.insert(fault::FILTER.into(), proto::any(&fault::encode(fault)));
    }
    if let Some(cors) = &route.cors {
        settings.insert(CORS.into(), optional(proto::any(&cors::encode(cors))));
    }
    if let Some(session) = session_of(route) {
        settings.insert(SESSION.into(), optional(proto::any(&session::encode(session))));
    }
    settings
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

fn optional(config: Any) -> Any {
    proto::any(&pb::FilterConfig { config: Some(config), is_optional: true, disabled: false })
}

fn decode_filter(
    name: &str,
    config: &Any,
    watched: Option<Duration>,
    settings: &mut Settings,
) -> Decoded<()> {
    if !proto::is::<pb::FilterConfig>(config) {
        return match known(config, watched, settings)? {
            true => Ok(()),
            false => Err(unknown(config)),
        };
    }
    let wrapper: pb::FilterConfig = proto::unpack(config)?;
    if wrapper.disabled {
        if name == fault::FILTER {
            settings.fault = Some(Fault::default());
        }
        return match wrapper.is_optional || [fault::FILTER, CORS, SESSION].contains(&name) {
            true => Ok(()),
            false => Err(unknown(wrapper.config.as_ref().unwrap_or(config))),
        };
    }
    let is_known = match &wrapper.config {
        Some(inner) => known(inner, watched, settings)?,
        None => false,
    };
    if is_known || wrapper.is_optional {
        return Ok(());
    }
    Err(unknown(wrapper.config.as_ref().unwrap_or(config)))
}

/// Takes the settings of a filter; false for one that is not known.
fn known(config: &Any, watched: Option<Duration>, settings: &mut Settings) -> Decoded<bool> {
    if proto::is::<HttpFault>(config) {
        settings.fault = Some(fault::decode(proto::unpack(config)?)?);
    } else if proto::is::<CorsPolicy>(config) {
        settings.cors = Some(cors::decode(proto::unpack(config)?)?);
    } else if proto::is::<StatefulSessionPerRoute>(config) {
        settings.session = session::decode(proto::unpack(config)?, watched)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn unknown(config: &Any) -> FieldError {
    FieldError::new(format!(
        "{:?} can't be set for a part of the routes: put it in the listener, or mark it is_optional",
        proto::inner_type(config)
    ))
}
