//! Filters and references of a rule.
//!
//! In: filters and backend references as written. Out: the model's header changes, rewrites, redirects, mirrors and faults,
//! and the clusters that references lead to. A filter that is not supported makes its rule answer with 500: doing
//! without it is not what the author asked for.

use http::{HeaderName, HeaderValue, StatusCode};
use tulle_mesh::address::{ClusterName, ServicePort};
use tulle_mesh::model::{
    Cors, Fault, FaultAbort, FaultPart, FilterOverride, FilterOverrides, HeaderMutation, HeaderMutations,
    HeaderOp, HostRewrite, Mirror, PathRewrite, PerMillion, Redirect, Regex, StringMatch,
};

use super::read::escape;
use crate::kinds::{Fraction, GROUP, HTTPFaultFilter};
use crate::source::route::{self as raw, BackendRef, Filter, HeaderModifier, PathModifier};
use crate::source::{Key, Kind, Objects};
use crate::world::report::{Condition, Report, Subject};
use crate::world::services::{Services, port_number};

/// What the filters of a rule or of a backend do.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) request_headers: HeaderMutations,
    pub(super) response_headers: HeaderMutations,
    pub(super) redirect: Option<Redirect>,
    pub(super) path_rewrite: Option<PathRewrite>,
    pub(super) host_rewrite: Option<HostRewrite>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) fault: Option<Fault>,
    pub(super) cors: Option<Cors>,
    /// One of them can't be done.
    pub(super) failed: bool,
}

impl Applied {
    /// What is said of the listener's filters, in the order of their names.
    pub(super) fn overrides(&self) -> FilterOverrides {
        let cors = self.cors.clone().map(FilterOverride::cors);
        cors.into_iter().chain(self.fault.clone().map(FilterOverride::fault)).collect()
    }
}

/// Reads the parts of one route, and keeps its first faults.
pub(super) struct Reader<'a> {
    pub(super) key: &'a Key,
    pub(super) subject: &'a Subject,
    pub(super) objects: &'a Objects,
    pub(super) services: &'a Services,
    pub(super) report: &'a mut Report,
    pub(super) accepted: Condition,
    pub(super) resolved: Condition,
}

impl Reader<'_> {
    /// Something that is written can't be done.
    pub(super) fn unsupported(&mut self, field: String, reason: impl Into<String>, fix: &str) {
        let reason = reason.into();
        if self.accepted.status {
            self.accepted = Condition::failed("Accepted", "UnsupportedValue", format!("{field}: {reason}"));
        }
        self.report.error(self.subject, field, reason, fix);
    }

    fn unresolved(&mut self, field: String, word: &'static str, reason: String, fix: &str) {
        if self.resolved.status {
            self.resolved = Condition::failed("ResolvedRefs", word, format!("{field}: {reason}"));
        }
        self.report.error(self.subject, field, reason, fix);
    }

    /// The cluster that a reference leads to, and the Service and its port's name, where they exist.
    pub(super) fn backend(
        &mut self,
        backend: &BackendRef,
        field: &str,
    ) -> (String, Option<(Key, Option<String>)>) {
        let namespace = backend.namespace.as_deref().unwrap_or(&self.key.namespace);
        let name = &backend.name;
        let port = backend.port.and_then(port_number);
        // A name that no cluster has: its share of the requests is answered with 500.
        let nowhere = ClusterName::outbound(ServicePort::new(
            format!("{name}.{namespace}.unresolved"),
            port.unwrap_or_default(),
        ));
        let group = backend.group.as_deref().unwrap_or_default();
        let kind = backend.kind.as_deref().unwrap_or("Service");
        if !(group.is_empty() || group == "core") || kind != "Service" {
            let reason = format!("a backend of kind {kind} is not supported");
            self.unresolved(format!("{field}.kind"), "InvalidKind", reason, "use a Service");
            return (nowhere.to_string(), None);
        }
        let Some(service) = self.services.find(namespace, name) else {
            let reason = format!("there is no Service {namespace}/{name}");
            let fix = "correct the name, or create the Service; until then its share of requests gets 500";
            self.unresolved(format!("{field}.name"), "BackendNotFound", reason, fix);
            return (nowhere.to_string(), None);
        };
        if service.external_name.is_some() {
            let reason = format!("Service {namespace}/{name} is of type ExternalName");
            let fix = "name a Service with endpoints of its own; until then its share of requests gets 500";
            self.unresolved(format!("{field}.name"), "InvalidKind", reason, fix);
            return (nowhere.to_string(), None);
        }
        let Some(found) = port.and_then(|port| service.port(port)) else {
            let reason = match backend.port {
                Some(port) => format!("Service {namespace}/{name} has no TCP port {port}"),
                None => "the port is missing".into(),
            };
            let fix = "name one of the Service's ports; until then its share of requests gets 500";
            self.unresolved(format!("{field}.port"), "BackendNotFound", reason, fix);
            return (nowhere.to_string(), None);
        };
        (found.cluster().to_string(), Some((service.key.clone(), found.name.clone())))
    }

    /// Reads filters. `on_prefix`: all matches of the rule are prefixes of the path. `of_backend`: they stand in a backend
    /// reference.
    pub(super) fn filters(
        &mut self,
        filters: &[Filter],
        field: &str,
        on_prefix: bool,
        of_backend: bool,
    ) -> Applied {
        let mut applied = Applied::default();
        for (index, filter) in filters.iter().enumerate() {
            let at = format!("{field}[{index}]");
            if self.filter(filter, &at, on_prefix, of_backend, &mut applied).is_none() {
                applied.failed = true;
            }
        }
        applied
    }

    /// `None` when the filter can't be done.
    fn filter(
        &mut self,
        filter: &Filter,
        at: &str,
        on_prefix: bool,
        of_backend: bool,
        applied: &mut Applied,
    ) -> Option<()> {
        let kind = filter.kind.as_str();
        match kind {
            "RequestHeaderModifier" | "ResponseHeaderModifier" => {}
            _ if of_backend => {
                let reason = format!("the filter {kind} is not supported in a backendRef");
                self.unsupported(format!("{at}.type"), reason, "put it into the rule's filters");
                return None;
            }
            _ => {}
        }
        let missing = |reader: &mut Self, part: &str| {
            reader.unsupported(
                format!("{at}.{part}"),
                format!("a filter of type {kind} needs {part}"),
                "add it",
            );
            None
        };
        match kind {
            "RequestHeaderModifier" => {
                let Some(changes) = &filter.request_header_modifier else {
                    return missing(self, "requestHeaderModifier");
                };
                self.headers(changes, &format!("{at}.requestHeaderModifier"), &mut applied.request_headers)?;
            }
            "ResponseHeaderModifier" => {
                let Some(changes) = &filter.response_header_modifier else {
                    return missing(self, "responseHeaderModifier");
                };
                self.headers(
                    changes,
                    &format!("{at}.responseHeaderModifier"),
                    &mut applied.response_headers,
                )?;
            }
            "RequestMirror" => {
                let Some(mirror) = &filter.request_mirror else { return missing(self, "requestMirror") };
                let (cluster, service) =
                    self.backend(&mirror.backend_ref, &format!("{at}.requestMirror.backendRef"));
                let fraction = match (mirror.fraction, mirror.percent) {
                    (Some(fraction), _) => {
                        self.fraction(fraction, &format!("{at}.requestMirror.fraction"))?
                    }
                    (None, Some(percent)) => PerMillion::percent(u32::try_from(percent).unwrap_or_default()),
                    (None, None) => PerMillion::ALL,
                };
                // Nobody waits for a copy: one that can't be sent is not worth an error to the client.
                if service.is_some() {
                    applied.mirrors.push(Mirror::new(cluster, fraction));
                }
            }
            "RequestRedirect" => {
                let Some(redirect) = &filter.request_redirect else {
                    return missing(self, "requestRedirect");
                };
                applied.redirect =
                    Some(self.redirect(redirect, &format!("{at}.requestRedirect"), on_prefix)?);
            }
            "URLRewrite" => {
                let Some(rewrite) = &filter.url_rewrite else { return missing(self, "urlRewrite") };
                if let Some(path) = &rewrite.path {
                    applied.path_rewrite = self.path(path, &format!("{at}.urlRewrite.path"), on_prefix)?;
                }
                applied.host_rewrite = rewrite.hostname.clone().map(HostRewrite::Literal);
            }
            "CORS" => {
                let Some(cors) = &filter.cors else { return missing(self, "cors") };
                applied.cors = Some(self.cors(cors, &format!("{at}.cors"))?);
            }
            "ExtensionRef" => {
                let Some(reference) = &filter.extension_ref else { return missing(self, "extensionRef") };
                applied.fault = Some(self.fault(reference, &format!("{at}.extensionRef"))?);
            }
            _ => {
                let fix = "remove the filter; until then the rule answers with 500";
                self.unsupported(format!("{at}.type"), format!("the filter {kind} is not supported"), fix);
                return None;
            }
        }
        Some(())
    }

    fn headers(&mut self, changes: &HeaderModifier, at: &str, into: &mut HeaderMutations) -> Option<()> {
        for name in &changes.remove {
            into.remove.push(self.header_name(name, &format!("{at}.remove"))?);
        }
        let set = changes.set.iter().map(|header| (header, HeaderOp::Set, "set"));
        let add = changes.add.iter().map(|header| (header, HeaderOp::Append, "add"));
        for (header, op, part) in set.chain(add) {
            let field = format!("{at}.{part}");
            let name = self.header_name(&header.name, &field)?;
            let Ok(value) = HeaderValue::from_str(&header.value) else {
                let reason = format!("{:?} can't be a header's value", header.value);
                self.unsupported(field, reason, "use visible ASCII characters");
                return None;
            };
            into.change.push(HeaderMutation { name, value: value.into(), op });
        }
        Some(())
    }

    fn header_name(&mut self, name: &str, field: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        if parsed.is_none() {
            self.unsupported(field.into(), format!("{name:?} is not a header's name"), "correct the name");
        }
        parsed
    }

    fn redirect(&mut self, redirect: &raw::Redirect, at: &str, on_prefix: bool) -> Option<Redirect> {
        let status = StatusCode::from_u16(redirect.status_code.unwrap_or(302)).ok();
        let Some(status) = status.filter(|status| [301, 302, 303, 307, 308].contains(&status.as_u16()))
        else {
            let reason = "the status is not one of a redirect";
            self.unsupported(format!("{at}.statusCode"), reason, "use 301, 302, 303, 307 or 308");
            return None;
        };
        let path = match &redirect.path {
            Some(path) => self.path(path, &format!("{at}.path"), on_prefix)?,
            None => None,
        };
        // Without a port of its own, a redirect to a scheme goes to that scheme's well-known port (Gateway API).
        let well_known = redirect.scheme.as_deref().map(|scheme| if scheme == "https" { 443 } else { 80 });
        let port = redirect.port.and_then(port_number).or(well_known);
        Some(Redirect {
            scheme: redirect.scheme.clone(),
            host: redirect.hostname.clone(),
            port,
            path,
            status,
            strip_query: false,
        })
    }

    fn path(&mut self, path: &PathModifier, at: &str, on_prefix: bool) -> Option<Option<PathRewrite>> {
        if let Some(prefix) = &path.replace_prefix_match {
            if !on_prefix {
                let reason =
                    "a prefix can only be replaced where all matches of the rule are of type PathPrefix";
                self.unsupported(at.into(), reason, "use ReplaceFullPath, or match on PathPrefix");
                return None;
            }
            return Some(Some(PathRewrite::Prefix(prefix.clone())));
        }
        Some(path.replace_full_path.clone().map(PathRewrite::Full))
    }

    fn cors(&mut self, cors: &raw::Cors, at: &str) -> Option<Cors> {
        let mut allow_origins = Vec::new();
        for (index, text) in cors.allow_origins.iter().enumerate() {
            match origin(text) {
                Ok(matcher) => allow_origins.push(matcher),
                Err(reason) => {
                    let fix = "write <scheme>://<host>[:<port>], or \"*\" for all";
                    self.unsupported(format!("{at}.allowOrigins[{index}]"), reason, fix);
                    return None;
                }
            }
        }
        // One asterisk stands for all.
        let list = |names: &[String]| match names.iter().any(|name| name == "*") {
            true => "*".to_owned(),
            false => names.join(", "),
        };
        // 5 s is the Fetch standard's default, and the Gateway API's.
        let max_age = cors.max_age.map_or(5, |age| u64::try_from(age).unwrap_or_default());
        Some(Cors {
            allow_origins,
            allow_credentials: cors.allow_credentials,
            allow_methods: list(&cors.allow_methods),
            allow_headers: list(&cors.allow_headers),
            expose_headers: list(&cors.expose_headers),
            max_age: max_age.to_string(),
            ..Cors::default()
        })
    }

    fn fault(&mut self, reference: &raw::ExtensionRef, at: &str) -> Option<Fault> {
        if reference.group != GROUP || reference.kind != HTTPFaultFilter::KIND {
            let reason =
                format!("there is no filter of kind {} in group {:?}", reference.kind, reference.group);
            self.unresolved(at.into(), "InvalidKind", reason, "name an HTTPFaultFilter of group tulle.dev");
            return None;
        }
        let Some(filter) = self.objects.find::<HTTPFaultFilter>(&self.key.namespace, &reference.name) else {
            let reason = format!("there is no HTTPFaultFilter {}/{}", self.key.namespace, reference.name);
            let fix = "correct the name, or create it; until then the rule answers with 500";
            self.unresolved(at.into(), "BackendNotFound", reason, fix);
            return None;
        };
        let spec = filter.spec.clone();
        let all = |fraction: Option<Fraction>| fraction.unwrap_or(Fraction::ALL);
        let delay = match spec.delay {
            Some(delay) => {
                Some(FaultPart::fixed(delay.duration.get(), self.fraction(all(delay.fraction), at)?))
            }
            None => None,
        };
        let abort = match spec.abort {
            Some(abort) => {
                let status =
                    StatusCode::from_u16(abort.status_code).ok().filter(|s| (200..600).contains(&s.as_u16()));
                let grpc_status = abort.grpc_status.as_deref().map(|name| (name, grpc_status(name)));
                let (Some(status), None | Some((_, Some(_)))) = (status, grpc_status) else {
                    let reason = format!(
                        "the abort of HTTPFaultFilter {} has a status that does not exist",
                        reference.name
                    );
                    self.unsupported(
                        at.into(),
                        reason,
                        "use an HTTP status from 200 to 599, and a gRPC status' name",
                    );
                    return None;
                };
                let fraction = self.fraction(all(abort.fraction), at)?;
                let grpc_status = grpc_status.and_then(|(_, status)| status);
                Some(FaultPart::fixed(FaultAbort { status, grpc_status }, fraction))
            }
            None => None,
        };
        Some(Fault { delay, abort, ..Fault::default() })
    }

    fn fraction(&mut self, fraction: Fraction, field: &str) -> Option<PerMillion> {
        let parsed = per_million(fraction);
        if parsed.is_none() {
            let reason = format!("{}/{} is not a part of a whole", fraction.numerator, fraction.denominator);
            self.unsupported(field.into(), reason, "make the numerator at most the denominator");
        }
        parsed
    }
}

/// The origins that a text of `allowOrigins` stands for. An asterisk in the host stands for any labels to its left; the
/// port that is well known for the scheme is left out, as browsers do.
fn origin(text: &str) -> Result<StringMatch, String> {
    if text == "*" {
        return Ok(StringMatch::exact("*"));
    }
    let fault = || format!("{text:?} is not an origin");
    let lower = text.to_ascii_lowercase();
    let (scheme, rest) = lower.split_once("://").ok_or_else(fault)?;
    let well_known = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return Err(format!("{text:?} is an origin of another scheme than http and https")),
    };
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return Err(fault());
    }
    let authority = rest.strip_suffix(well_known).unwrap_or(rest);
    if !authority.contains('*') {
        return Ok(StringMatch::exact(format!("{scheme}://{authority}")));
    }
    let parts: Vec<_> = authority.split('*').map(escape).collect();
    Regex::new(format!("{scheme}://{}", parts.join("[^/]+"))).map(StringMatch::Regex)
}

/// A fraction in the model's terms; `None` when it is more than the whole.
pub(in crate::world) fn per_million(fraction: Fraction) -> Option<PerMillion> {
    let (part, whole) = (u64::from(fraction.numerator), u64::from(fraction.denominator));
    if whole == 0 || part > whole {
        return None;
    }
    u32::try_from(part * 1_000_000 / whole).ok().map(PerMillion)
}

/// The number of a gRPC status.
fn grpc_status(name: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.iter().position(|known| *known == name).and_then(|at| u32::try_from(at).ok())
}
