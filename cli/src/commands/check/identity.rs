//! The mesh's roots: whether pods get those that the control plane has, and how long they last.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tulle_control_plane::ca::distribute::{KEY, NAME};
use tulle_control_plane::kubernetes::Cluster;
use x509_parser::parse_x509_certificate;

use super::report::Report;

/// A root that ends sooner than this should be replaced.
const SOON: Duration = Duration::from_secs(60 * 24 * 3600);

/// Checks them.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) {
    report.section("identity");
    let what = "the trust bundle's roots are valid";
    let client = || cluster.client.clone();
    let bundles = Api::<ConfigMap>::all(client());
    let named = ListParams::default().fields(&format!("metadata.name={NAME}"));
    let bundles = match bundles.list(&named).await {
        Ok(bundles) => bundles,
        Err(error) => return report.untold(what, &error),
    };
    let text = |bundle: &ConfigMap| bundle.data.as_ref().and_then(|data| data.get(KEY).cloned());
    let own = bundles.iter().find(|bundle| bundle.namespace().as_ref() == Some(&cluster.namespace));
    let Some(own) = own.and_then(text) else {
        let reason = format!("there is no ConfigMap {NAME} in {}", cluster.namespace);
        return report.fail(what, reason, "the control plane that leads makes it: look at its log");
    };
    let hint =
        "replace the root: tulle-control-plane rotate-root prepare --kubernetes, then switch, then retire";
    let now = SystemTime::now();
    match ends(&own) {
        Err(reason) => {
            report.fail(what, reason, "look at the Secret tulle-ca, and at the control plane's log")
        }
        Ok(end) if end < now => report.fail(what, "one has expired: no new connection can be made", hint),
        Ok(end) if end < now + SOON => {
            let days = end.duration_since(now).unwrap_or_default().as_secs() / (24 * 3600);
            report.warn(what, format!("one ends in {days} days"), hint);
        }
        Ok(_) => report.pass(what),
    }

    let what = "every namespace has the trust bundle";
    let namespaces = match Api::<Namespace>::all(client()).list(&ListParams::default()).await {
        Ok(namespaces) => namespaces,
        Err(error) => return report.untold(what, &error),
    };
    let lacking: Vec<String> = namespaces
        .iter()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
        .map(ResourceExt::name_any)
        .filter(|name| {
            let bundle = bundles.iter().find(|bundle| bundle.namespace().as_ref() == Some(name));
            bundle.and_then(text).as_ref() != Some(&own)
        })
        .collect();
    if lacking.is_empty() {
        report.pass(what);
    } else {
        let hint =
            "new pods there can't start, or trust nobody: look at the log of the control plane that leads";
        report.fail(what, format!("missing or different in {}", lacking.join(", ")), hint);
    }
}

/// When the first of some certificates ends.
pub(super) fn ends(pem: &str) -> Result<SystemTime, String> {
    let mut first: Option<SystemTime> = None;
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|error| format!("no PEM of certificates: {error}"))?;
        let (_, certificate) =
            parse_x509_certificate(&der).map_err(|error| format!("a certificate can't be read: {error}"))?;
        let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
        first = Some(first.map_or(end, |first| first.min(end)));
    }
    first.ok_or_else(|| "there is no certificate in it".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_said() {
        assert_eq!(ends(""), Err("there is no certificate in it".into()));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(ends(broken).expect_err("three zero bytes").starts_with("a certificate can't be read"));
    }
}
