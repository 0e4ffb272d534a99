//! An explanation for people: a line per fact, in the order in which the request meets them.

use tulle_mesh::authorize::AuthorizationRecord;
use tulle_mesh::explain::{Action, Backend, Endpoint, Forward, Inbound, Outcome, Retry};
use tulle_mesh::route::{RouteName, RouteRecord};

use super::Answer;
use crate::output::style;

/// The text, with colours.
pub(super) fn text(answer: &Answer) -> String {
    let explanation = &answer.explanation;
    let mut page = Page::default();
    let head = &explanation.request;
    let client = explanation.client.as_ref().map(|id| format!(" from {id}")).unwrap_or_default();
    page.line(0, "request", &format!("{} {} to {}{client}", head.method, head.target, head.authority));
    page.line(0, "listener", &format!("{} ({} was dialled)", explanation.listener, answer.dialled));
    if let Some(route) = &explanation.route {
        routes(&mut page, route, answer);
    }
    match &explanation.action {
        Some(Action::Forward(forward)) => forwarding(&mut page, forward, answer),
        Some(Action::Redirect { status, location }) => {
            page.line(0, "redirect", &format!("{status} to {location}"));
        }
        Some(Action::Respond { status, body }) => page.line(0, "answer", &format!("{status} {body}")),
        Some(Action::NonForwarding) => page.line(0, "answer", "none: the route does not forward"),
        None => {}
    }
    let outcome = match &explanation.outcome {
        Outcome::Forwarded => style::good("forwarded"),
        Outcome::Answered { status } => style::good(format!("answered with {status}")),
        Outcome::Refused { status, reason } => format!("{} ({status}): {reason}", style::bad("refused")),
    };
    page.line(0, "outcome", &outcome);
    for note in &answer.notes {
        page.line(0, "note", &style::doubtful(note));
    }
    page.0
}

/// Lines with a title in front.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, title: &str, text: &str) {
        let title = format!("{}{title}", "  ".repeat(depth));
        self.0.push_str(&format!("{} {text}\n", style::title(format!("{title:<12}"))));
    }
}

fn routes(page: &mut Page, record: &RouteRecord, answer: &Answer) {
    let host = record.virtual_host.as_ref();
    let host = host.map(|host| format!(" of {} (host {})", host.name, host.domain)).unwrap_or_default();
    match &record.matched {
        Some(route) => page.line(0, "route", &format!("{}{host}", style::good(named(route, answer)))),
        None if record.virtual_host.is_some() => page.line(0, "route", &format!("none{host} matches")),
        None => {
            let known = record.known_domains.join(", ");
            page.line(0, "route", &format!("no host matches {:?}; there is {known}", record.authority));
        }
    }
    for miss in &record.missed {
        page.line(1, "not", &format!("{}: {}", named(&miss.route, answer), miss.reason));
    }
}

/// A route by name, object and line.
fn named(route: &RouteName, answer: &Answer) -> String {
    let origin = route.origin.as_ref().map(|origin| {
        let rule = match origin.kind.as_str() {
            "Service" => String::new(),
            _ => format!(" rule {} match {}", origin.rule, origin.matched),
        };
        format!(" ({} {}/{}{rule})", origin.kind, origin.namespace, origin.name)
    });
    format!("{}{}{}", route.name, origin.unwrap_or_default(), at(&route.name, answer))
}

fn at(name: &str, answer: &Answer) -> String {
    answer.places.get(name).map(|place| format!(" at {place}")).unwrap_or_default()
}

fn forwarding(page: &mut Page, forward: &Forward, answer: &Answer) {
    for fault in &forward.fault {
        page.line(1, "fault", fault);
    }
    page.line(1, "timeout", &timeouts(forward));
    page.line(1, "retry", &forward.retry.as_ref().map_or_else(|| ALWAYS_SAFE.into(), retry));
    for mirror in &forward.mirrors {
        page.line(1, "mirror", mirror);
    }
    for backend in &forward.backends {
        backend_lines(page, backend, answer);
    }
}

const ALWAYS_SAFE: &str = "only what is always safe";

fn timeouts(forward: &Forward) -> String {
    let say = |name: &str, milliseconds: Option<u64>| match milliseconds {
        None => format!("{name} by default"),
        Some(0) => format!("{name} unlimited"),
        Some(milliseconds) => format!("{name} {}", duration(milliseconds)),
    };
    let mut parts = vec![say("request", forward.timeouts.request)];
    parts.extend(forward.timeouts.idle.map(|idle| say("idle", Some(idle))));
    parts.extend(forward.timeouts.max_stream.map(|life| say("stream", Some(life))));
    let attempt = forward.retry.as_ref().and_then(|retry| retry.per_try_timeout);
    parts.extend(attempt.map(|attempt| say("each attempt", Some(attempt))));
    parts.join(", ")
}

fn retry(retry: &Retry) -> String {
    let plural = if retry.attempts == 1 { "y" } else { "ies" };
    format!("at most {} retr{plural} on {}; and what is always safe", retry.attempts, retry.on.join(", "))
}

fn duration(milliseconds: u64) -> String {
    match milliseconds % 1000 {
        0 => format!("{} s", milliseconds / 1000),
        _ => format!("{milliseconds} ms"),
    }
}

fn backend_lines(page: &mut Page, backend: &Backend, answer: &Answer) {
    let share = format!("{:.1} %", backend.share);
    let missing = if backend.known { String::new() } else { style::bad(" does not exist") };
    page.line(0, "backend", &format!("{share} to {}{missing}", backend.cluster));
    let (before, after) = (&answer.explanation.request, &backend.becomes);
    if before != after {
        page.line(1, "becomes", &format!("{} {} to {}", after.method, after.target, after.authority));
    }
    for change in &backend.request_headers {
        page.line(1, "request", change);
    }
    for change in &backend.response_headers {
        page.line(1, "response", change);
    }
    for name in &backend.dns {
        page.line(1, "by DNS", name);
    }
    if backend.known && backend.dns.is_empty() && backend.endpoints.is_empty() {
        page.line(1, "endpoint", &style::bad("none"));
    }
    for endpoint in &backend.endpoints {
        endpoint_lines(page, endpoint, answer);
    }
}

fn endpoint_lines(page: &mut Page, endpoint: &Endpoint, answer: &Answer) {
    let workload = match endpoint.workload.as_str() {
        "" => String::new(),
        workload => format!(" {workload}"),
    };
    let how = match (&endpoint.identity, endpoint.mtls) {
        (Some(identity), _) => format!("mTLS to {identity}"),
        (None, true) => "mTLS to anyone of the mesh".into(),
        (None, false) => style::doubtful("plaintext"),
    };
    let health = match endpoint.usable() {
        true => String::new(),
        false => format!(", {}", style::doubtful(&endpoint.health)),
    };
    page.line(1, "endpoint", &format!("{}{workload}, {how}{health}", endpoint.address));
    match &endpoint.inbound {
        Some(inbound) => inbound_lines(page, inbound, answer),
        None if endpoint.mtls => page.line(2, "inbound", &style::faint("decided by its own sidecar")),
        None => page.line(2, "inbound", &style::faint("no sidecar decides there")),
    }
}

fn inbound_lines(page: &mut Page, inbound: &Inbound, answer: &Answer) {
    let mode = inbound.mtls_mode;
    if !inbound.accepted {
        let refused = style::bad("no part of the listener takes such a connection");
        page.line(2, "inbound", &format!("mTLS {mode}: {refused}"));
        return;
    }
    let records: Vec<&AuthorizationRecord> =
        [&inbound.connection, &inbound.request].into_iter().flatten().collect();
    // The verdict that counts is the refusal, or the one in which a policy had a say.
    let verdict = records
        .iter()
        .find(|record| !record.allowed)
        .or_else(|| records.iter().find(|record| record.by.is_some()))
        .or(records.last());
    let verdict = verdict.map_or_else(String::new, |record| verdict_text(record, answer));
    page.line(2, "inbound", &format!("mTLS {mode}; {verdict}"));
    for record in records {
        let nearest = record.nearest.as_ref().map(|near| &near.policy);
        for policy in
            record.policies.iter().filter(|policy| !policy.matched && Some(&policy.policy) != nearest)
        {
            page.line(3, "not", &format!("{policy}{}", at(&policy.policy, answer)));
        }
    }
}

fn verdict_text(record: &AuthorizationRecord, answer: &Answer) -> String {
    match (&record.by, record.allowed) {
        (Some(policy), true) => format!("{} by {policy}{}", style::good("allowed"), at(policy, answer)),
        (None, true) => format!("{}: no ALLOW policy is for it", style::good("allowed")),
        (Some(policy), false) => format!("{} by {policy}{}", style::bad("denied"), at(policy, answer)),
        (None, false) => {
            let nearest = record.nearest.as_ref().map(|near| {
                let others = match near.failing {
                    1 => String::new(),
                    more => format!(" ({more} conditions fail)"),
                };
                format!("; nearest is {}{}: {}{others}", near.policy, at(&near.policy, answer), near.first)
            });
            let denied = style::bad("denied");
            format!("{denied}: no ALLOW policy matches{}", nearest.unwrap_or_default())
        }
    }
}
