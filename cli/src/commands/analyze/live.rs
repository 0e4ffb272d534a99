//! A running mesh: what its control plane knows of objects and of sidecars.

use std::time::SystemTime;

use tulle_control_plane::api::types::{ObjectList, ProblemStatus, ProxyList, ProxyStatus};

use super::Finding;
use super::codes::Code;
use super::problems::code;
use crate::commands::remote;
use crate::output::Failure;

/// The findings of a running control plane.
///
/// # Errors
/// When it does not answer.
pub(super) async fn findings(address: &str) -> Result<Vec<Finding>, Failure> {
    let objects: ObjectList = remote::get(address, "/api/v1/objects", &[]).await?;
    let proxies: ProxyList = remote::get(address, "/api/v1/proxies", &[]).await?;
    let now = SystemTime::now();
    let mut findings = of_objects(&objects);
    findings.extend(proxies.proxies.iter().flat_map(|proxy| of_proxy(proxy, now)));
    Ok(findings)
}

fn of_objects(list: &ObjectList) -> Vec<Finding> {
    let mut findings: Vec<_> =
        list.problems.iter().map(|problem| of_problem(("", "", ""), problem)).collect();
    for object in &list.objects {
        let named = (object.kind.as_str(), object.namespace.as_str(), object.name.as_str());
        findings.extend(object.problems.iter().map(|problem| of_problem(named, problem)));
    }
    findings
}

fn of_problem(object: (&str, &str, &str), problem: &ProblemStatus) -> Finding {
    let code = code(object.0, problem.severity == "error", &problem.field);
    let mut finding = Finding::about(code, object, &problem.field, &problem.reason, &problem.fix);
    if object.0.is_empty() {
        finding.object = String::new();
    }
    let numbers = [problem.line, problem.column].into_iter().flatten();
    if let Some(file) = &problem.file {
        finding.place = numbers.fold(format!("{file}:"), |place, number| format!("{place}{number}:"));
    }
    finding
}

fn of_proxy(proxy: &ProxyStatus, now: SystemTime) -> Vec<Finding> {
    let namespace = proxy.identity.split("/ns/").nth(1).and_then(|rest| rest.split('/').next());
    let about = ("Sidecar", namespace.unwrap_or_default(), proxy.node.as_str());
    let mut findings = Vec::new();
    for (kind, status) in &proxy.types {
        for nack in &status.nacked {
            let message = format!("it rejects {kind} {}: {}", nack.name, nack.reason);
            let hint = "mend the object that the resource is made from; until then its last good version is in force";
            findings.push(Finding::about(Code::SidecarRejects, about, "", message, hint));
        }
        if status.nacked.is_empty() && !status.synced {
            let message = format!("it has not acknowledged the last {kind} that it was sent");
            let hint = "ask again; one that stays behind is stuck or cut off: look at its log";
            findings.push(Finding::about(Code::SidecarBehind, about, "", message, hint));
        }
    }
    if proxy.certificate_expires.is_some_and(|until| until.0 < now) {
        let hint =
            "it could not renew it: look at its log, and whether it may still ask the control plane for one";
        let message = "its certificate has expired: it can't open connections to others";
        findings.push(Finding::about(Code::CredentialExpired, about, "", message, hint));
    }
    let own = env!("CARGO_PKG_VERSION");
    if proxy.user_agent == "tulle-sidecar" && !proxy.version.is_empty() && proxy.version != own {
        let message = format!("it is version {}, this program is {own}", proxy.version);
        findings.push(Finding::about(Code::OldSidecar, about, "", message, "restart it to upgrade it"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use tulle_control_plane::api::types::{Nack, Time, TypeStatus};

    #[test]
    fn what_sidecars_say_is_found() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let nack =
            Nack { name: "cart:80".into(), version: "1".into(), reason: "no cluster".into(), at: Time(now) };
        let proxy = ProxyStatus {
            node: "cart-1".into(),
            identity: "spiffe://td/ns/shop/sa/cart".into(),
            address: None,
            user_agent: "tulle-sidecar".into(),
            version: "0.0.1".into(),
            protocol: "delta".into(),
            connected_since: Time(now),
            certificate_since: None,
            certificate_expires: Some(Time(now - Duration::from_secs(1))),
            root: None,
            token_expires: None,
            synced: false,
            types: BTreeMap::from([
                ("LDS".to_owned(), TypeStatus { nacked: vec![nack], ..TypeStatus::default() }),
                ("RDS".to_owned(), TypeStatus::default()),
                ("CDS".to_owned(), TypeStatus { synced: true, ..TypeStatus::default() }),
            ]),
        };
        let found = of_proxy(&proxy, now);
        let codes: Vec<_> = found.iter().map(|finding| finding.code).collect();
        assert_eq!(
            codes,
            [Code::SidecarRejects, Code::SidecarBehind, Code::CredentialExpired, Code::OldSidecar]
        );
        assert_eq!((found[0].object.as_str(), found[0].namespace.as_str()), ("Sidecar shop/cart-1", "shop"));
        assert_eq!(found[0].message, "it rejects LDS cart:80: no cluster");
    }
}
