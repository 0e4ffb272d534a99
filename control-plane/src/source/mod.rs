//! Where configuration comes from.
//!
//! In: a folder of manifests ([`manifests`]), or a Kubernetes API server ([`kubernetes`]). Out: [`Objects`], typed Kubernetes objects, each with the place where it
//! was written, and the [`Problem`]s of what could not be read. Whatever the source, [`crate::world`] sees the same
//! types. A source never hands out half an object: one that is broken is left out, or kept as it was.

pub mod kubernetes;
pub mod manifests;
mod problem;
mod read;
pub(crate) mod route;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gateway_api::experimental::{grpcroutes, httproutes, tcproutes, tlsroutes};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kinds;

pub use kubernetes::KubernetesSource;
pub use manifests::{ManifestsSource, SourceError};
pub use problem::{ObjectRef, Problem, Severity};

/// What a source has read.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects in force.
    pub objects: Objects,
    /// What is wrong with others.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// Whether nothing was changed: neither objects, nor where they are written, nor what is wrong.
    pub fn same(&self, other: &Self) -> bool {
        struct Compare<'a>(&'a Objects, &'a Objects, bool);
        impl KindVisitor for Compare<'_> {
            fn visit<T: Kind>(&mut self) {
                let (left, right) = (T::table(self.0), T::table(self.1));
                self.2 &= left.len() == right.len()
                    && left.iter().zip(right).all(|((left_key, left), (right_key, right))| {
                        left_key == right_key && *left.value == *right.value && left.place == right.place
                    });
            }
        }
        let mut compare = Compare(&self.objects, &other.objects, self.problems == other.problems);
        Objects::visit_kinds(&mut compare);
        compare.2
    }
}

/// Namespace (empty for kinds without) and name. Objects are in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// Names an object of some kind.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// All objects of one kind.
pub type Table<T> = BTreeMap<Key, Object<T>>;

/// An object and where it was written. Cheap to clone.
#[derive(Debug)]
pub struct Object<T> {
    /// The object. A source keeps the `Arc` of an object that did not change.
    pub value: Arc<T>,
    /// Where it was written, if in a file.
    pub place: Option<Arc<Place>>,
}

impl<T> Clone for Object<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), place: self.place.clone() }
    }
}

impl<T> std::ops::Deref for Object<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Where an object was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The object's first line, from 1.
    pub line: u32,
    /// The lines of its fields, by their path (`spec.rules[0].matches`).
    pub fields: BTreeMap<Box<str>, u32>,
}

impl Place {
    /// The line of a field, or of the nearest field around it that was written.
    pub fn line_of(&self, field: &str) -> u32 {
        let mut path = field;
        loop {
            if let Some(line) = self.fields.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(at) => path = &path[..at],
                None => return self.line,
            }
        }
    }
}

/// A kind of objects that Tulle reads.
pub trait Kind:
    serde::de::DeserializeOwned + schemars::JsonSchema + PartialEq + Send + Sync + 'static
{
    /// Its name.
    const KIND: &'static str;
    /// Its API group; empty for Kubernetes' core.
    const GROUP: &'static str;
    /// The versions that have this form.
    const VERSIONS: &'static [&'static str];
    /// Its fields decide where traffic goes, so that one that is not known makes the object invalid. Other kinds may
    /// come from a newer cluster than this build, and what is not known is only reported.
    const STRICT: bool;
    /// Its objects belong to a namespace.
    const NAMESPACED: bool;

    /// What is wrong with the form of a field, beyond its type.
    fn check(&self) -> Result<(), FieldFault>;
    /// The object's metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The object's metadata.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// Where objects of the kind are kept.
    fn table(objects: &Objects) -> &Table<Self>;
    /// Where objects of the kind are kept.
    fn table_mut(objects: &mut Objects) -> &mut Table<Self>;
}

/// The path of a field below `spec`, and what is wrong with it.
pub type FieldFault = (String, String);

/// Does something with each kind: calls a method of a [`KindVisitor`] with the kind's type.
pub(crate) trait KindVisitor {
    fn visit<T: Kind>(&mut self);
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $group:literal $versions:tt $kind:literal $strict:literal $namespaced:literal $($check:path)?;)*) => {
        /// All objects that the mesh is made of.
        #[derive(Clone, Debug, Default)]
        pub struct Objects { $($(#[$doc])* pub $field: Table<$type>,)* }

        $(impl Kind for $type {
            const KIND: &'static str = $kind;
            const GROUP: &'static str = $group;
            const VERSIONS: &'static [&'static str] = &$versions;
            const STRICT: bool = $strict;
            const NAMESPACED: bool = $namespaced;

            fn check(&self) -> Result<(), FieldFault> {
                $($check(&self.spec)?;)?
                Ok(())
            }
            fn meta(&self) -> &ObjectMeta { &self.metadata }
            fn meta_mut(&mut self) -> &mut ObjectMeta { &mut self.metadata }
            fn table(objects: &Objects) -> &Table<Self> { &objects.$field }
            fn table_mut(objects: &mut Objects) -> &mut Table<Self> { &mut objects.$field }
        })*

        impl Objects {
            pub(crate) fn visit_kinds(visitor: &mut impl KindVisitor) {
                $(visitor.visit::<$type>();)*
            }
        }
    };
}

kinds! {
    /// Namespaces.
    namespaces: Namespace = "" ["v1"] "Namespace" false false;
    /// Nodes, for the zones of their pods.
    nodes: Node = "" ["v1"] "Node" false false;
    /// Services.
    services: Service = "" ["v1"] "Service" false true;
    /// The endpoints of Services, as Kubernetes keeps them.
    endpoint_slices: EndpointSlice = "discovery.k8s.io" ["v1"] "EndpointSlice" false true;
    /// Pods.
    pods: Pod = "" ["v1"] "Pod" false true;
    /// HTTP routes.
    http_routes: httproutes::HttpRoute = "gateway.networking.k8s.io" ["v1", "v1beta1"] "HTTPRoute" true true route::Spec::check;
    /// gRPC routes.
    grpc_routes: grpcroutes::GrpcRoute = "gateway.networking.k8s.io" ["v1", "v1alpha2"] "GRPCRoute" true true route::Spec::check;
    /// TLS routes.
    tls_routes: tlsroutes::TlsRoute = "gateway.networking.k8s.io" ["v1", "v1alpha3", "v1alpha2"] "TLSRoute" true true route::Spec::check;
    /// TCP routes.
    tcp_routes: tcproutes::TcpRoute = "gateway.networking.k8s.io" ["v1", "v1alpha2"] "TCPRoute" true true route::Spec::check;
    /// Workloads outside a cluster.
    workloads: kinds::Workload = "tulle.dev" ["v1alpha1"] "Workload" true true;
    /// How clients talk to Services.
    backend_traffic_policies: kinds::BackendTrafficPolicy = "tulle.dev" ["v1alpha1"] "BackendTrafficPolicy" true true;
    /// What workloads accept.
    inbound_policies: kinds::InboundPolicy = "tulle.dev" ["v1alpha1"] "InboundPolicy" true true;
    /// Who may do what.
    authorization_policies: kinds::AuthorizationPolicy = "tulle.dev" ["v1alpha1"] "AuthorizationPolicy" true true;
    /// What is traced and logged.
    telemetry_policies: kinds::TelemetryPolicy = "tulle.dev" ["v1alpha1"] "TelemetryPolicy" true true;
    /// Injected failure.
    fault_filters: kinds::HTTPFaultFilter = "tulle.dev" ["v1alpha1"] "HTTPFaultFilter" true true;
}

impl Objects {
    /// Adds an object, and gives back the one that had its name.
    pub fn insert<T: Kind>(&mut self, object: Object<T>) -> Option<Object<T>> {
        let key = key(object.meta());
        T::table_mut(self).insert(key, object)
    }

    /// The object of a kind and name.
    pub fn find<T: Kind>(&self, namespace: &str, name: &str) -> Option<&Object<T>> {
        T::table(self).get(&Key::new(namespace, name))
    }

    /// The kinds of an API group, each with the versions that are read here, the preferred one first.
    pub fn kinds(group: &str) -> Vec<(&'static str, &'static [&'static str])> {
        struct Collect<'a>(&'a str, Vec<(&'static str, &'static [&'static str])>);
        impl KindVisitor for Collect<'_> {
            fn visit<T: Kind>(&mut self) {
                if T::GROUP == self.0 {
                    self.1.push((T::KIND, T::VERSIONS));
                }
            }
        }
        let mut collect = Collect(group, Vec::new());
        Self::visit_kinds(&mut collect);
        collect.1
    }

    /// Names every object, by kind and then in order.
    pub fn refs(&self) -> Vec<ObjectRef> {
        struct Collect<'a>(&'a Objects, Vec<ObjectRef>);
        impl KindVisitor for Collect<'_> {
            fn visit<T: Kind>(&mut self) {
                self.1.extend(T::table(self.0).keys().map(|key| object_ref::<T>(key)));
            }
        }
        let mut collect = Collect(self, Vec::new());
        Self::visit_kinds(&mut collect);
        collect.1
    }
}

/// Names an object of kind `T`.
pub fn object_ref<T: Kind>(key: &Key) -> ObjectRef {
    ObjectRef { kind: T::KIND, namespace: key.namespace.clone(), name: key.name.clone() }
}

fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
