//! Compiles the filters of a listener, once for all routes and again for each that says something of them.

use std::sync::Arc;

use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model::{FilterOverride, FilterSettings, HttpFilter};
use tulle_mesh::route::{Step, steps};

use super::Stage;
use crate::limit::{Counts, RequestLimits, Said};

/// The filters of a listener, and the limits that were made of them.
pub(crate) struct Filters<'a> {
    own: &'a [HttpFilter],
    /// The sidecar's own cluster.
    source: &'a str,
    before: Option<&'a Counts>,
    counts: Counts,
}

impl<'a> Filters<'a> {
    /// `before` are the limits of the listener's last version.
    pub(crate) fn new(own: &'a [HttpFilter], source: &'a str, before: Option<&'a Counts>) -> Self {
        Self { own, source, before, counts: Counts::after(before) }
    }

    /// Whether limits may ask what a route says of its requests.
    pub(crate) fn have_descriptors(&self) -> bool {
        let of_limit = |settings: &FilterSettings| matches!(settings, FilterSettings::LocalRateLimit(Some(limit)) if limit.descriptors.is_some());
        self.own.iter().any(|filter| match filter {
            HttpFilter::LocalRateLimit(limit) => limit.descriptors.is_some(),
            HttpFilter::Replaceable(filter) => of_limit(&filter.settings),
            _ => false,
        })
    }

    /// Whether routes may keep sessions.
    pub(crate) fn have_sessions(&self) -> bool {
        self.own.contains(&HttpFilter::Sessions)
    }

    /// What requests pass of which this is said, the nearest to them first. `rates` is what their route says of them; it
    /// `forwards` them, or answers itself, which is nothing for pages of other origins (as in Envoy).
    pub(crate) fn stages(
        &mut self,
        said: &[&[Arc<FilterOverride>]],
        rates: Said<'_>,
        forwards: bool,
    ) -> Vec<Stage> {
        let steps = steps(self.own, said);
        let mut stages = Vec::new();
        for steps in steps.chunk_by(|(before, _), (after, _)| go_together(before, after)) {
            match steps[0].0 {
                Step::Authorization(_) => {
                    let sets = steps.iter().filter_map(|(step, _)| match step {
                        Step::Authorization(set) => Some((*set).clone()),
                        _ => None,
                    });
                    stages.push(Stage::Authorization(Authorizer::compile(sets.collect())));
                }
                Step::LocalRateLimit(_) | Step::AdaptiveConcurrency(_) => {
                    let limits =
                        RequestLimits::build(steps, rates, self.source, self.before, &mut self.counts);
                    stages.push(Stage::Limits(limits));
                }
                Step::Cors(rules) if forwards => stages.push(Stage::Cors(Arc::new(rules.clone()))),
                Step::Cors(_) => {}
                Step::Fault(fault) => stages.push(Stage::Fault(fault.clone())),
            }
        }
        stages
    }

    /// All limits that were made.
    pub(crate) fn into_counts(self) -> Counts {
        self.counts
    }
}

/// Whether one stage does both: several policies, or limits on rates and then the one on concurrency.
fn go_together(before: &Step<'_>, after: &Step<'_>) -> bool {
    match before {
        Step::Authorization(_) => matches!(after, Step::Authorization(_)),
        Step::LocalRateLimit(_) => matches!(after, Step::LocalRateLimit(_) | Step::AdaptiveConcurrency(_)),
        Step::AdaptiveConcurrency(_) | Step::Fault(_) | Step::Cors(_) => false,
    }
}

/// Whether what requests pass depends on the cluster that they go to.
pub(crate) fn name_cluster(stages: &[Stage]) -> bool {
    stages.iter().any(|stage| match stage {
        Stage::Limits(limits) => limits.names_cluster(),
        Stage::Fault(fault) => !fault.cluster.is_empty(),
        Stage::Authorization(_) | Stage::Cors(_) => false,
    })
}
