//! The server's side: which chain takes the connection, and whether it and the request may pass.

use std::net::SocketAddr;

use crate::authorize::{Authorizer, Facts};
use crate::model::{FilterChain, HttpFilter, Listener, Protocol, UpstreamTls};

use super::outbound::Carried;
use super::{Inbound, MtlsMode, Question};

/// What `listener` says to a request that arrives at `address`, over mTLS where `tls` is given.
pub(super) fn arrive(
    listener: &Listener,
    question: &Question<'_>,
    address: SocketAddr,
    tls: Option<&UpstreamTls>,
    carried: Carried,
) -> Inbound {
    let chain = chain(listener, tls.is_some(), carried);
    let mut inbound = Inbound {
        listener: listener.name.clone(),
        mtls_mode: mode(listener),
        accepted: chain.is_some(),
        connection: None,
        request: None,
    };
    let Some(chain) = chain else { return inbound };
    let connection = Facts {
        peer: question.client.filter(|_| tls.is_some()),
        source_ip: question.source_ip,
        destination: address,
        server_name: tls.map(|tls| tls.sni.as_str()),
        request: None,
    };
    inbound.connection = Some(Authorizer::compile(chain.authorization.clone()).explain(&connection));
    if let Protocol::Http(http) = &chain.protocol {
        let sets = http.filters.iter().filter_map(|filter| match filter {
            HttpFilter::Authorization(set) => Some(set.clone()),
            _ => None,
        });
        let facts = Facts { request: Some(question.request), ..connection };
        inbound.request = Some(Authorizer::compile(sets.collect()).explain(&facts));
    }
    inbound
}

/// The first chain that takes such a connection; HTTP may also pass as bytes, bytes never as HTTP.
fn chain(listener: &Listener, tls: bool, carried: Carried) -> Option<&FilterChain> {
    let mut fitting = listener.chains.iter().filter(|chain| chain.tls.is_some() == tls);
    let http = |chain: &&FilterChain| matches!(chain.protocol, Protocol::Http(_));
    match carried {
        Carried::Http => fitting.clone().find(http).or_else(|| fitting.next()),
        Carried::Bytes => fitting.find(|chain| !http(chain)),
    }
}

fn mode(listener: &Listener) -> MtlsMode {
    let (mtls, plaintext): (Vec<_>, Vec<_>) = listener.chains.iter().partition(|chain| chain.tls.is_some());
    match (mtls.is_empty(), plaintext.is_empty()) {
        (true, _) => MtlsMode::Disabled,
        (false, true) => MtlsMode::Strict,
        (false, false) => MtlsMode::Permissive,
    }
}
