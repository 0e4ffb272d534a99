//! Redirection: the rules that bring the application's connections to the sidecar without its knowledge, and the proof
//! that they do.
//!
//! In: flags. Out: rules in the kernel's network namespace of the process, or their text; or the outcome of probes.
//! Nothing here is on the path of traffic.

pub mod probe;

mod init;
mod iptables;
mod netlink;
mod nft_text;
mod options;
pub(crate) mod original;
mod rules;
mod validate;

pub use init::{InitError, init, is_in_place, is_supported};
pub use options::{
    AccountId, Conflict, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, InitSettings, Mode, PortList,
    SubnetList,
};
pub use validate::{EXIT_NOT_REDIRECTED, ValidateError, ValidateSettings, validate};
