//! The compiled form of a route configuration. Its answer is that of trying the routes of the best virtual host one
//! after the other; it only skips those that can't match.

use std::fmt;

use crate::model::{
    Backend, Domain, HeaderMutations, Operator, Route, RouteAction, RouteConfiguration, VirtualHost,
};

use super::hosts::{DomainAt, HostIndex};
use super::matcher::{drawn, failing, failing_beyond_path};
use super::paths::PathIndex;
use super::{RequestView, RouteRecord, record};

/// The number of a route, dense over all virtual hosts of its table: an index for what is kept beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(u32);

impl RouteId {
    /// From 0 up to but without [`RouteTable::len`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a request goes. Both misses are a 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Under this route.
    Found(RouteId),
    /// No domain matches the host.
    NoVirtualHost,
    /// The virtual host has no route that matches.
    NoRoute,
}

/// A route configuration, ready to be asked.
#[derive(Debug)]
pub struct RouteTable {
    configuration: RouteConfiguration,
    hosts: HostIndex,
    /// For each virtual host: the number of its first route, and where its paths lead.
    indexes: Vec<(u32, PathIndex)>,
    /// The virtual host of each route.
    host_of: Vec<u32>,
    /// Of each route, whether changes to its responses have fields of the request in them.
    tells_request: Vec<bool>,
}

impl RouteTable {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// When a domain stands twice in it or a virtual host has none: Envoy refuses both.
    pub fn compile(configuration: &RouteConfiguration) -> Result<Self, RouteError> {
        let configuration = configuration.clone();
        let virtual_hosts = &configuration.virtual_hosts;
        if let Some(host) = virtual_hosts.iter().find(|host| host.domains.is_empty()) {
            return Err(RouteError::NoDomain {
                configuration: configuration.name.clone(),
                virtual_host: host.name.clone(),
            });
        }
        let hosts = HostIndex::build(virtual_hosts).map_err(|duplicate| {
            let name = |at: DomainAt| virtual_hosts[at.virtual_host].name.clone();
            let at = duplicate.second;
            RouteError::DuplicateDomain {
                configuration: configuration.name.clone(),
                domain: virtual_hosts[at.virtual_host].domains[at.domain].clone(),
                virtual_hosts: [name(duplicate.first), name(duplicate.second)],
            }
        })?;
        let mut indexes = Vec::with_capacity(virtual_hosts.len());
        let mut host_of = Vec::new();
        for (number, host) in (0u32..).zip(virtual_hosts) {
            let first = u32::try_from(host_of.len()).expect("2^32 routes don't fit into memory");
            indexes.push((first, PathIndex::build(host.routes.iter().map(|route| &route.matches))));
            host_of.extend(host.routes.iter().map(|_| number));
        }
        let mut table = Self { configuration, hosts, indexes, host_of, tells_request: Vec::new() };
        table.tells_request = table.routes().map(|(id, route)| table.reads_request(id, route)).collect();
        Ok(table)
    }

    /// Finds the route of a request. `draw` yields numbers uniform over all of `u32`; it is asked once for each route
    /// with a fraction whose other conditions hold, in the order of the routes.
    pub fn lookup(&self, request: &RequestView<'_>, mut draw: impl FnMut() -> u32) -> Lookup {
        let Some(at) = self.hosts.find(request.authority) else { return Lookup::NoVirtualHost };
        let host = &self.configuration.virtual_hosts[at.virtual_host];
        let (first, paths) = &self.indexes[at.virtual_host];
        for candidate in paths.candidates(request.path) {
            let rule = &host.routes[candidate.number as usize].matches;
            let failing = match candidate.path_known {
                true => failing_beyond_path(rule, request),
                false => failing(rule, request),
            };
            if failing.is_none() && drawn(rule, &mut draw) {
                return Lookup::Found(RouteId(first + candidate.number));
            }
        }
        Lookup::NoRoute
    }

    /// Does what [`RouteTable::lookup`] does, with the same draws, and says why each other route did not match.
    pub fn explain(&self, request: &RequestView<'_>, draw: impl FnMut() -> u32) -> RouteRecord {
        let found = self.hosts.find(request.authority).map(|at| {
            let host = &self.configuration.virtual_hosts[at.virtual_host];
            (host, &host.domains[at.domain])
        });
        record::explain(&self.configuration, found, request, draw)
    }

    /// The name of the configuration.
    pub fn name(&self) -> &str {
        &self.configuration.name
    }

    /// The configuration that was compiled.
    pub fn configuration(&self) -> &RouteConfiguration {
        &self.configuration
    }

    /// How many routes there are, over all virtual hosts.
    pub fn len(&self) -> usize {
        self.host_of.len()
    }

    /// Whether there is no route at all.
    pub fn is_empty(&self) -> bool {
        self.host_of.is_empty()
    }

    /// The route of a number.
    ///
    /// # Panics
    /// When the number is another table's and too great for this one.
    pub fn route(&self, id: RouteId) -> &Route {
        let first = self.indexes[self.host_of[id.index()] as usize].0;
        &self.virtual_host(id).routes[(id.0 - first) as usize]
    }

    /// The virtual host of a route.
    ///
    /// # Panics
    /// When the number is another table's and too great for this one.
    pub fn virtual_host(&self, id: RouteId) -> &VirtualHost {
        &self.configuration.virtual_hosts[self.host_of[id.index()] as usize]
    }

    /// What is changed in requests that take a route to a backend, in this order.
    pub fn request_headers<'a>(
        &'a self,
        id: RouteId,
        backend: Option<&'a Backend>,
    ) -> impl Iterator<Item = &'a HeaderMutations> {
        self.changes(
            backend.map(|backend| &backend.request_headers),
            &self.route(id).request_headers,
            &self.virtual_host(id).headers.request,
            &self.configuration.headers.request,
        )
    }

    /// What is changed in the responses to such requests, in this order; without a backend in those of the route itself.
    pub fn response_headers<'a>(
        &'a self,
        id: RouteId,
        backend: Option<&'a Backend>,
    ) -> impl Iterator<Item = &'a HeaderMutations> {
        self.changes(
            backend.map(|backend| &backend.response_headers),
            &self.route(id).response_headers,
            &self.virtual_host(id).headers.response,
            &self.configuration.headers.response,
        )
    }

    /// Whether changes to the responses of a route have fields of the request in them: as it was sent.
    ///
    /// # Panics
    /// When the number is another table's and too great for this one.
    pub fn response_tells_request(&self, id: RouteId) -> bool {
        self.tells_request[id.index()]
    }

    /// All operators in the changes to heads.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        let hosts = &self.configuration.virtual_hosts;
        let routes = hosts.iter().flat_map(|host| &host.routes);
        let of_routes = routes.clone().flat_map(|route| [&route.request_headers, &route.response_headers]);
        let backends = routes.flat_map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.backends.as_slice(),
            RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => &[],
        });
        let of_backends = backends.flat_map(|backend| [&backend.request_headers, &backend.response_headers]);
        let above = hosts.iter().map(|host| &host.headers).chain([&self.configuration.headers]);
        let above = above.flat_map(|changes| [&changes.request, &changes.response]);
        of_routes.chain(of_backends).chain(above).flat_map(HeaderMutations::operators)
    }

    fn reads_request(&self, id: RouteId, route: &Route) -> bool {
        let backends = match &route.action {
            RouteAction::Forward(forward) => forward.backends.as_slice(),
            RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => &[],
        };
        let own = self.response_headers(id, None);
        let mut all = own.chain(backends.iter().map(|backend| &backend.response_headers));
        all.any(HeaderMutations::read_request)
    }

    fn changes<'a>(
        &self,
        backend: Option<&'a HeaderMutations>,
        route: &'a HeaderMutations,
        host: &'a HeaderMutations,
        all: &'a HeaderMutations,
    ) -> impl Iterator<Item = &'a HeaderMutations> {
        let [first, last] =
            if self.configuration.specific_headers_last { [all, route] } else { [route, all] };
        // A backend's come first in either order, as in Envoy.
        let changes = [backend, Some(first), Some(host), Some(last)];
        changes.into_iter().flatten().filter(|changes| !changes.is_empty())
    }

    /// All routes, by number.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &Route)> {
        let routes = self.configuration.virtual_hosts.iter().flat_map(|host| &host.routes);
        (0u32..).map(RouteId).zip(routes)
    }
}

/// Why a configuration can't be compiled. The fault is that of whoever made it; trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// A domain stands twice.
    DuplicateDomain {
        /// The route configuration's name.
        configuration: String,
        /// The domain, as it was given the second time.
        domain: Domain,
        /// Where it stands; twice the same for a repetition within one.
        virtual_hosts: [String; 2],
    },
    /// A virtual host that no request can reach.
    NoDomain {
        /// The route configuration's name.
        configuration: String,
        /// The virtual host's.
        virtual_host: String,
    },
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateDomain { configuration, domain, virtual_hosts: [first, second] } => write!(
                f,
                "route configuration {configuration:?}: domain \"{domain}\" stands in virtual host {first:?} and again \
                 in {second:?}: remove one of them"
            ),
            Self::NoDomain { configuration, virtual_host } => write!(
                f,
                "route configuration {configuration:?}: virtual host {virtual_host:?} has no domains: give it at least \
                 one (\"*\" for all hosts)"
            ),
        }
    }
}

impl std::error::Error for RouteError {}

#[cfg(test)]
mod tests;
