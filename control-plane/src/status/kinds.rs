//! The kinds of objects whose status the mesh writes.

use gateway_api::experimental::{grpcroutes, httproutes, tcproutes, tlsroutes};

use super::programmed::{PROGRAMMED, ROUTE_PROGRAMMED};
use crate::kinds::{AuthorizationPolicy, BackendTrafficPolicy, InboundPolicy, TelemetryPolicy};
use crate::source::{Kind, KindVisitor, Objects};

/// A kind with a status.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusKind {
    /// Its name.
    pub(super) kind: &'static str,
    /// Its API group.
    pub(super) group: &'static str,
    /// The versions that have a form that the mesh knows, the best first.
    pub(super) versions: &'static [&'static str],
    /// It is a policy, not a route.
    pub(super) policy: bool,
}

/// All of them.
pub(super) const KINDS: [StatusKind; 8] = [
    StatusKind::of::<httproutes::HttpRoute>(false),
    StatusKind::of::<grpcroutes::GrpcRoute>(false),
    StatusKind::of::<tlsroutes::TlsRoute>(false),
    StatusKind::of::<tcproutes::TcpRoute>(false),
    StatusKind::of::<BackendTrafficPolicy>(true),
    StatusKind::of::<InboundPolicy>(true),
    StatusKind::of::<AuthorizationPolicy>(true),
    StatusKind::of::<TelemetryPolicy>(true),
];

impl StatusKind {
    const fn of<T: Kind>(policy: bool) -> Self {
        Self { kind: T::KIND, group: T::GROUP, versions: T::VERSIONS, policy }
    }

    /// The type of the condition that says whether sidecars have it.
    pub(super) fn programmed(&self) -> &'static str {
        if self.policy { PROGRAMMED } else { ROUTE_PROGRAMMED }
    }

    /// The kind of this name, if it has a status.
    pub(super) fn find(kind: &str) -> Option<&'static Self> {
        static ALL: [StatusKind; 8] = KINDS;
        ALL.iter().find(|known| known.kind == kind)
    }
}

/// Calls `each` with the kind, the namespace and name, and the generation of every object that has a status.
pub(super) fn for_each(
    objects: &Objects,
    each: &mut dyn FnMut(&'static StatusKind, crate::source::ObjectRef, i64),
) {
    struct Visit<'a>(&'a Objects, &'a mut dyn FnMut(&'static StatusKind, crate::source::ObjectRef, i64));
    impl KindVisitor for Visit<'_> {
        fn visit<T: Kind>(&mut self) {
            let Some(kind) = StatusKind::find(T::KIND) else { return };
            for (key, object) in T::table(self.0) {
                let generation = object.value.meta().generation.unwrap_or_default();
                (self.1)(kind, crate::source::object_ref::<T>(key), generation);
            }
        }
    }
    Objects::visit_kinds(&mut Visit(objects, each));
}
