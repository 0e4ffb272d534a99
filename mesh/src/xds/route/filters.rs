//! Settings of filters for a part of the routes (`typed_per_filter_config`).
//!
//! Tulle's control plane writes those of a route's faults, cross-origin rules and sessions. The latter two are marked as optional,
//! since proxyless gRPC has neither and would refuse the whole configuration. Whoever reads may pass over what is optional.
//! Of filters for authorization and rate limits, others say more for a part of the routes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
use envoy_types::pb::google::protobuf::Any;

use super::{cors, session};
use crate::model::{Backend, Cors, Fault, FilterOverrides, Route, RouteAction, Session};
use crate::xds::error::{At, Decoded, FieldError, unsupported};
use crate::xds::listener::replaceable;
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
    pub(super) overrides: FilterOverrides,
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
    settings.extend(encode_overrides(&route.filters));
    settings
}

pub(super) fn encode_backend(backend: &Backend) -> HashMap<String, Any> {
    let fault =
        backend.fault.as_ref().map(|fault| (fault::FILTER.to_owned(), proto::any(&fault::encode(fault))));
    let cors = backend.cors.as_ref().map(|cors| (CORS.to_owned(), optional(proto::any(&cors::encode(cors)))));
    fault.into_iter().chain(cors).chain(encode_overrides(&backend.filters)).collect()
}

fn encode_overrides(filters: &FilterOverrides) -> impl Iterator<Item = (String, Any)> {
    filters.iter().map(|said| (said.filter.clone(), replaceable::encode_override(said)))
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

/// Reads the settings of a backend: its faults, its cross-origin rules, and what it says of the listener's filters.
pub(super) fn decode_backend(filters: &HashMap<String, Any>) -> Decoded<Settings> {
    let mut settings = decode(filters, None)?;
    unsupported(settings.session.is_some(), "stateful_session", "put it on the route")
        .at("typed_per_filter_config")?;
    // What a route switches off it has not; a backend may have it from its route.
    let off = |config: &Any| {
        proto::is::<pb::FilterConfig>(config)
            && proto::unpack::<pb::FilterConfig>(config).is_ok_and(|wrapper| wrapper.disabled)
    };
    if filters.get(CORS).is_some_and(off) {
        settings.cors = Some(Cors::off());
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
        return match known(name, config, watched, settings)? {
            true => Ok(()),
            false => Err(unknown(config)),
        };
    }
    let wrapper: pb::FilterConfig = proto::unpack(config)?;
    if wrapper.disabled {
        match name {
            fault::FILTER => settings.fault = Some(Fault::default()),
            // Without settings of its own a route has none of these anyway.
            CORS | SESSION => {}
            _ => settings.overrides.push(Arc::new(replaceable::decode_disabled(name)?)),
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
    if proto::is::<HttpFault>(config) {
        settings.fault = Some(fault::decode(proto::unpack(config)?)?);
    } else if proto::is::<CorsPolicy>(config) {
        settings.cors = Some(cors::decode(proto::unpack(config)?)?);
    } else if proto::is::<StatefulSessionPerRoute>(config) {
        settings.session = session::decode(proto::unpack(config)?, watched)?;
    } else if let Some(said) = replaceable::decode_override(name, config)? {
        settings.overrides.push(Arc::new(said));
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
