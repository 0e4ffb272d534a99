//! `tulle-sidecar init`: makes the rules, shows them, or removes them.

use std::fmt;

use super::iptables::{self, IptablesError};
use super::netlink::{self, NetlinkError};
use super::nft_text;
use super::options::{Conflict, InitSettings, Mode};
use super::rules::{Ruleset, TABLE};

/// Does what the settings say, in the network namespace of the process. The text is for the user: the rules, or what was
/// done.
///
/// # Errors
/// When the settings exclude each other, or the rules can't be changed.
pub fn init(settings: &InitSettings) -> Result<String, InitError> {
    settings.check().map_err(InitError::Settings)?;
    let rules = Ruleset::new(settings);
    match (settings.mode, settings.dry_run, settings.cleanup) {
        (Mode::Nftables, true, false) => Ok(rules.to_string()),
        (Mode::Nftables, true, true) => Ok(nft_text::removal()),
        (Mode::Nftables, false, false) => {
            netlink::apply(&rules).map_err(InitError::Nftables)?;
            Ok(format!("TCP is redirected: nftables, table inet {TABLE}"))
        }
        (Mode::Nftables, false, true) => {
            netlink::remove().map_err(InitError::Nftables)?;
            Ok(format!("nothing is redirected: nftables has no table inet {TABLE} now"))
        }
        (Mode::Iptables, true, cleanup) => Ok(iptables::dry_run(&rules, cleanup)),
        (Mode::Iptables, false, cleanup) => {
            match netlink::remove() {
                Err(error) if !error.is_unsupported() => return Err(InitError::Nftables(error)),
                _ => iptables::apply(&rules, cleanup).map_err(InitError::Iptables)?,
            }
            Ok(if cleanup {
                "nothing is redirected: iptables has no chains TULLE_* now".into()
            } else {
                "TCP is redirected: iptables, chains TULLE_* of the table nat".into()
            })
        }
    }
}

/// Whether the rules for these settings are there, made with nftables.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_in_place(settings: &InitSettings) -> Result<bool, InitError> {
    netlink::is_in_place(&Ruleset::new(settings)).map_err(InitError::Nftables)
}

/// Asks the kernel whether it has nftables for the caller at all.
///
/// # Errors
/// When not, and why.
pub fn is_supported() -> Result<(), InitError> {
    netlink::is_supported().map_err(InitError::Nftables)
}

/// Why the rules are not as they should be.
#[derive(Debug)]
pub enum InitError {
    /// The settings exclude each other.
    Settings(Conflict),
    /// The kernel's nftables.
    Nftables(NetlinkError),
    /// The programs of iptables.
    Iptables(IptablesError),
}

impl InitError {
    /// Whether other settings are all that it takes.
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Settings(_))
    }
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::Nftables(error) => error.fmt(f),
            Self::Iptables(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InitError {}
