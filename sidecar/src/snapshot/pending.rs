//! Names of the decision engine until `tulle_mesh::route` and `tulle_mesh::authorize` hold them.

/// `tulle_mesh::authorize::Authorizer`.
pub(crate) struct Authorizer {}
/// `tulle_mesh::route::RouteTable`.
pub(crate) struct RouteTable {}
