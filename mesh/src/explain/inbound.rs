//! The server's side: which chain takes the connection, and whether it and the request may pass.

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::authorize::{Authorizer, Facts};
use crate::model::{FilterChain, Listener, Protocol, UpstreamTls};
use crate::route::{Normalized, Step, normalize, steps};

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
    let chains = chains(listener, address.port());
    let chain = chain(&chains, tls.is_some(), carried);
    let mut inbound = Inbound {
        listener: listener.name.clone(),
        mtls_mode: mode(&chains),
        accepted: chain.is_some(),
        connection: None,
        request: None,
    };
    let Some(chain) = chain else { return inbound };
    let connection = Facts {
        tls: tls.is_some(),
        peer: question.client.filter(|_| tls.is_some()),
        source_ip: question.source_ip,
        connection_ip: question.source_ip,
        remote_ip: question.source_ip,
        destination: address,
        server_name: tls.map(|tls| tls.sni.as_str()),
        request: None,
    };
    inbound.connection = Some(Authorizer::compile(chain.authorization.clone()).explain(&connection));
    if let Protocol::Http(http) = &chain.protocol {
        // The one route of a sidecar's inbound listener says nothing of filters.
        let sets = steps(&http.filters, &[]).into_iter().filter_map(|(step, _)| match step {
            Step::Authorization(set) => Some(set.clone()),
            _ => None,
        });
        // A sidecar that refuses or redirects has done so at the other end already.
        let request = match normalize(question.request.target(), &http.paths) {
            Normalized::Changed(target) => Cow::Owned(target),
            _ => Cow::Borrowed(question.request.target()),
        };
        let request = question.request.with_target(&request);
        let facts = Facts { request: Some(&request), ..connection };
        inbound.request = Some(Authorizer::compile(sets.collect()).explain(&facts));
    }
    inbound
}

/// The chains for connections to `port`: those for it alone, else those for all ports, and last the default.
fn chains(listener: &Listener, port: u16) -> Vec<&FilterChain> {
    let (conditional, default) = listener.split_default();
    let of = |port| conditional.iter().filter(move |chain| chain.matches.destination_port == port);
    let own: Vec<_> = of(Some(port)).collect();
    let chains = if own.is_empty() { of(None).collect() } else { own };
    chains.into_iter().chain(default).collect()
}

/// The first chain that takes such a connection; HTTP may also pass as bytes, bytes never as HTTP.
fn chain<'a>(chains: &[&'a FilterChain], tls: bool, carried: Carried) -> Option<&'a FilterChain> {
    let mut fitting = chains.iter().copied().filter(|chain| chain.tls.is_some() == tls);
    let http = |chain: &&FilterChain| matches!(chain.protocol, Protocol::Http(_));
    match carried {
        Carried::Http => fitting.clone().find(http).or_else(|| fitting.next()),
        Carried::Bytes => fitting.find(|chain| !http(chain)),
    }
}

fn mode(chains: &[&FilterChain]) -> MtlsMode {
    let (mtls, plaintext): (Vec<&FilterChain>, Vec<&FilterChain>) =
        chains.iter().copied().partition(|chain: &&FilterChain| chain.tls.is_some());
    match (mtls.is_empty(), plaintext.is_empty()) {
        (true, _) => MtlsMode::Disabled,
        (false, true) => MtlsMode::Strict,
        (false, false) => MtlsMode::Permissive,
    }
}
