//! TelemetryPolicy, put into the model's terms.
//!
//! In: the policies of a Service and of its namespace. Out: what of its requests is traced and logged, at both ends.

use tulle_mesh::address::{ClusterName, ServicePort};
use tulle_mesh::model::{AccessLog, AccessLogFormat, Format, PerMillion, Tracing};

use super::policies::Attached;
use super::report::{Report, Subject};
use super::routes::per_million;
use super::services::Services;
use crate::kinds::{AccessLogMode, TelemetryPolicy, TracingMode, TracingSettings};
use crate::source::Key;

/// What of the requests to something is traced and logged.
#[derive(Clone, Debug)]
pub(super) struct Telemetry {
    pub(super) tracing: Option<Tracing>,
    pub(super) access_log: Option<AccessLog>,
}

/// Finds what is traced and logged.
pub(super) struct Telemetries<'a> {
    pub(super) policies: &'a Attached<'a, TelemetryPolicy>,
    pub(super) services: &'a Services,
    /// Which part of requests is sampled where no policy says.
    pub(super) sampling: PerMillion,
    /// The policy for this namespace holds for the whole mesh.
    pub(super) mesh: &'a str,
}

type Policy<'a> = (&'a Subject, &'a TelemetryPolicy);

impl Telemetries<'_> {
    /// For requests to a Service.
    pub(super) fn of_service(&self, service: &Key, report: &mut Report) -> Telemetry {
        self.merge(&self.for_service(service), report)
    }

    /// For requests to a workload that stands behind some Services.
    pub(super) fn of_workload(&self, namespace: &str, services: &[&Key], report: &mut Report) -> Telemetry {
        self.merge(&self.for_workload(namespace, services), report)
    }

    /// The policies that have a part in requests to a Service, in the order in which they count.
    pub(super) fn for_service(&self, service: &Key) -> Vec<Policy<'_>> {
        self.policies.of_service(service).chain(self.of_mesh(&service.namespace)).collect()
    }

    /// The policies that have a part in requests to a workload, in the order in which they count.
    pub(super) fn for_workload(&self, namespace: &str, services: &[&Key]) -> Vec<Policy<'_>> {
        let mut found: Vec<Policy<'_>> = Vec::new();
        let behind = services.iter().flat_map(|service| self.policies.of_service(service));
        let all = behind.chain(self.policies.of_namespace(namespace)).chain(self.of_mesh(namespace));
        for policy in all {
            if !found.iter().any(|(subject, _)| subject.object == policy.0.object) {
                found.push(policy);
            }
        }
        found
    }

    fn of_mesh(&self, namespace: &str) -> Option<Policy<'_>> {
        self.policies.of_namespace(self.mesh).filter(|_| namespace != self.mesh)
    }

    /// Each setting is taken from the first policy that has it.
    fn merge(&self, policies: &[Policy<'_>], report: &mut Report) -> Telemetry {
        let tracing =
            policies.iter().filter_map(|(subject, policy)| Some((*subject, policy.spec.tracing.as_ref()?)));
        let log = policies.iter().find_map(|(_, policy)| policy.spec.access_log.as_ref());
        Telemetry {
            tracing: self.tracing(tracing.collect(), report),
            access_log: log.and_then(|settings| {
                let format = match settings.mode {
                    AccessLogMode::Disabled => return None,
                    AccessLogMode::Json => AccessLogFormat::Json,
                    AccessLogMode::Text => {
                        AccessLogFormat::Text(Format::lenient(settings.format.as_deref().unwrap_or_default()))
                    }
                };
                Some(AccessLog { format, filter: None })
            }),
        }
    }

    fn tracing(&self, policies: Vec<(&Subject, &TracingSettings)>, report: &mut Report) -> Option<Tracing> {
        if policies.first().is_some_and(|(_, settings)| settings.mode == TracingMode::Disabled) {
            return None;
        }
        let rate = policies.iter().find_map(|(subject, settings)| Some((subject, settings.sampling_rate?)));
        let random_sampling = rate.map_or(self.sampling, |(subject, rate)| {
            per_million(rate).unwrap_or_else(|| {
                let fix = "make the numerator at most the denominator; until then the default holds";
                report.error(subject, "spec.tracing.samplingRate", "the rate is more than the whole", fix);
                self.sampling
            })
        });
        let provider =
            policies.iter().find_map(|(subject, settings)| Some((subject, settings.provider.as_ref()?)));
        let collector = provider.and_then(|(subject, provider)| {
            let reference = &provider.backend_ref;
            let namespace = reference.namespace.as_deref().unwrap_or(&subject.object.namespace);
            let service = self.services.find(namespace, &reference.name);
            if service.is_none_or(|service| service.port(reference.port).is_none()) {
                report.error(
                    subject,
                    "spec.tracing.provider.backendRef",
                    format!(
                        "there is no Service {namespace}/{} with port {}",
                        reference.name, reference.port
                    ),
                    "correct it, or create the Service; until then spans go to the sidecar's own collector",
                );
            }
            let port = service?.port(reference.port)?;
            Some(ClusterName::outbound(ServicePort::clone(&port.service)).to_string())
        });
        let all = PerMillion::ALL;
        Some(Tracing {
            random_sampling,
            client_sampling: all,
            overall_sampling: all,
            collector,
            tags: Vec::new(),
        })
    }
}
