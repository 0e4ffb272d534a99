//! Compiles the filters of a listener, once for all routes and again for each that says something of them.

use std::sync::Arc;

use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model::{FilterOverride, FilterSettings, HttpFilter};
use tulle_mesh::route::{Step, steps};

use super::Steps;
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

    /// What requests pass of which this is said, the nearest to them first. `rates` is what their route says of them.
    pub(crate) fn steps(&mut self, said: &[&[Arc<FilterOverride>]], rates: Said<'_>) -> Steps {
        let steps = steps(self.own, said);
        let authorizations = steps.iter().filter_map(|(step, _)| match step {
            Step::Authorization(set) => Some((*set).clone()),
            _ => None,
        });
        let fault = steps.iter().find_map(|(step, _)| match step {
            Step::Fault(fault) => Some((*fault).clone()),
            _ => None,
        });
        Steps {
            authorizer: Authorizer::compile(authorizations.collect()),
            limits: RequestLimits::build(&steps, rates, self.source, self.before, &mut self.counts),
            fault,
        }
    }

    /// Whether the listener's own faults depend on where a request goes.
    pub(crate) fn names_cluster(&self) -> bool {
        let own = steps(self.own, &[]).into_iter().map(|(step, _)| step);
        own.into_iter().any(|step| matches!(step, Step::Fault(fault) if !fault.cluster.is_empty()))
    }

    /// All limits that were made.
    pub(crate) fn into_counts(self) -> Counts {
        self.counts
    }
}
