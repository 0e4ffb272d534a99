//! Tests against a real Kubernetes API server: the control plane reads it, proves tokens with it, keeps its CA there and
//! writes status.

mod addresses;
mod authority;
mod ca;
mod check;
mod client;
mod conflicting;
mod conflicts;
mod faults;
mod forward;
mod ha;
mod helm;
mod identity;
mod injection;
mod installed;
mod observed;
mod older;
mod plane;
mod pods;
mod rbac;
mod readme;
mod repair;
mod routes;
mod scale;
mod server;
mod source;
mod status;
mod tenants;
mod trust;
