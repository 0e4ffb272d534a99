//! xDS as others speak it: our sidecar beside Envoy, under a control plane of other making.
//!
//! Cases are generated from a seed, which a failure prints: `TULLE_SEED` replays it, `TULLE_CASES` makes more of them.

mod addresses;
mod balance;
mod bytes;
mod chains;
mod changes;
mod client_certificates;
mod compare;
mod crossorigin;
mod defaults;
mod failures;
mod faults;
mod faults_asked;
mod fields;
mod filter_order;
mod generate;
mod hostile;
mod http2;
mod identities;
mod limits;
mod logged;
mod mirrored;
mod paths;
mod per_route;
mod policies;
mod proxied;
mod rates;
mod request_ids;
mod requests;
mod retried;
mod routing;
mod server;
mod shares;
mod tags;
mod timed;
mod traced;
mod upgrades;
mod words;
