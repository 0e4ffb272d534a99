//! The virtual addresses on disk, so that a restart of the control plane moves none.
//!
//! In: the state folder, and what is chosen. Out: what was chosen before. A file that can't be read is an error, not a
//! new beginning: applications may still use the addresses in it.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::world::VirtualAddresses;

const FILE: &str = "virtual-addresses.json";

/// Where virtual addresses are kept, and those of before.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    before: VirtualAddresses,
}

impl Kept {
    /// Reads those of a state folder, where there are any.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn open(state: &Path) -> Result<Self, KeptError> {
        let path = state.join(FILE);
        let before = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(VirtualAddresses::default()),
            Err(error) => Err(error),
        };
        match before {
            Ok(before) => Ok(Self { path, before }),
            Err(error) => Err(KeptError { path, error }),
        }
    }

    /// Those of before.
    pub fn addresses(&self) -> VirtualAddresses {
        self.before.clone()
    }

    /// Replaces the file, whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, addresses: &VirtualAddresses) -> Result<(), KeptError> {
        let write = || {
            let new = self.path.with_extension("new");
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(addresses)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error| KeptError { path: self.path.clone(), error })
    }
}

/// The file can't be read or written.
#[derive(Debug)]
pub struct KeptError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for KeptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, error } = self;
        write!(
            f,
            "{}: {error}; restore it, or remove it to have virtual addresses chosen anew",
            path.display()
        )
    }
}

impl std::error::Error for KeptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let addresses: VirtualAddresses =
            serde_json::from_str(r#"{"cart.shop.svc.cluster.local": ["240.240.1.2", "2001:2::7"]}"#)
                .expect("JSON");
        let kept = Kept::open(folder.path()).expect("an empty folder is fine");
        assert_eq!(kept.addresses(), VirtualAddresses::default());
        kept.save(&addresses).expect("writable");
        assert_eq!(Kept::open(folder.path()).expect("readable").addresses(), addresses);
        fs::write(folder.path().join(FILE), "{").expect("writable");
        let error = Kept::open(folder.path()).expect_err("damaged").to_string();
        assert!(error.contains(FILE) && error.contains("restore it"), "{error}");
    }
}
