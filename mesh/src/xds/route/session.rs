//! Sessions of a route: Envoy's stateful sessions.
//!
//! Envoy ends a session only together with its cookie. A lifetime that the mesh itself watches (of a header, or of a
//! cookie that does not say when it ends) is in Tulle's metadata.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use envoy_types::pb::google::protobuf::Any;

use crate::model::{Session, SessionCarrier};
use crate::xds::error::{At, Decoded, FieldError, non_empty, required, unsupported};
use crate::xds::{matching, proto};

const COOKIE: &str = "envoy.http.stateful_session.cookie";
const HEADER: &str = "envoy.http.stateful_session.header";

/// The lifetime that is not in the message.
pub(super) fn watched_lifetime(session: &Session) -> Option<Duration> {
    match session.carrier {
        SessionCarrier::Cookie { permanent: true, .. } => None,
        SessionCarrier::Cookie { .. } | SessionCarrier::Header(_) => session.lifetime,
    }
}

pub(super) fn encode(session: &Session) -> pb::StatefulSessionPerRoute {
    let state = match &session.carrier {
        SessionCarrier::Cookie { name, path, permanent } => {
            let cookie = Cookie {
                name: name.clone(),
                ttl: session.lifetime.filter(|_| *permanent).map(proto::duration),
                path: path.clone(),
                attributes: Vec::new(),
            };
            proto::extension(COOKIE, proto::any(&CookieBasedSessionState { cookie: Some(cookie) }))
        }
        SessionCarrier::Header(name) => {
            proto::extension(HEADER, proto::any(&HeaderBasedSessionState { name: name.as_str().into() }))
        }
    };
    let session = pb::StatefulSession { session_state: Some(state), ..Default::default() };
    pb::StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) }
}

/// Reads a session, which lives for `watched` where its carrier does not say.
pub(super) fn decode(
    route: pb::StatefulSessionPerRoute,
    watched: Option<Duration>,
) -> Decoded<Option<Session>> {
    let session = match required(route.r#override, "override")? {
        Override::Disabled(_) => return Ok(None),
        Override::StatefulSession(session) => session,
    };
    unsupported(
        session.strict,
        "stateful_session.strict",
        "leave it out: a session moves from a lost endpoint",
    )?;
    let field = "stateful_session.session_state";
    let state = required(session.session_state, field)?;
    let config = required(state.typed_config, "typed_config").at(field)?;
    decode_state(&config, watched).at("typed_config").at(field).map(Some)
}

fn decode_state(config: &Any, watched: Option<Duration>) -> Decoded<Session> {
    if proto::is::<CookieBasedSessionState>(config) {
        let cookie = required(proto::unpack::<CookieBasedSessionState>(config)?.cookie, "cookie")?;
        unsupported(!cookie.attributes.is_empty(), "cookie.attributes", "leave them out")?;
        let ttl = proto::decode_duration(cookie.ttl, "cookie.ttl")?.filter(|ttl| !ttl.is_zero());
        let permanent = ttl.is_some();
        let name = non_empty(cookie.name, "cookie.name")?;
        let carrier = SessionCarrier::Cookie { name, path: cookie.path, permanent };
        return Ok(Session { carrier, lifetime: ttl.or(watched) });
    }
    if proto::is::<HeaderBasedSessionState>(config) {
        let state: HeaderBasedSessionState = proto::unpack(config)?;
        let name = matching::header_name(&state.name).at("name")?;
        return Ok(Session { carrier: SessionCarrier::Header(name), lifetime: watched });
    }
    Err(FieldError::new(format!(
        "{:?} is not supported: use a cookie or a header",
        proto::inner_type(config)
    )))
}
