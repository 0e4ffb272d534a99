//! Routing: which rule a request falls under, and what the rule does to it.
//!
//! In: a [`RouteConfiguration`](crate::model::RouteConfiguration), compiled once into a [`RouteTable`], and a
//! [`RequestView`] for each request. Out: the route's dense number, or on demand a [`RouteRecord`] that says why each
//! other route did not match. [`filter`] carries out a route's changes, [`split`] draws a backend, [`precedence`] orders
//! the rules that several objects bring.
//!
//! Looking a request up allocates nothing unless a condition needs a header with several values, a value that is not
//! UTF-8, or a percent-encoded query parameter.

pub mod filter;
pub mod precedence;
pub mod split;

#[cfg(test)]
mod fixtures;
mod hosts;
mod matcher;
mod normalize;
mod paths;
mod record;
mod request;
mod steps;
mod table;

pub use normalize::{Normalized, normalize};
pub(crate) use record::shown_header;
pub use record::{Condition, ConditionKind, HostRecord, Miss, Outcome, RouteMiss, RouteName, RouteRecord};
pub use request::RequestView;
pub use steps::{Step, steps};
pub use table::{Lookup, RouteError, RouteId, RouteTable};
