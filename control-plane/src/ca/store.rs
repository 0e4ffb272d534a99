//! The state folder: what must survive a restart of the control plane.
//!
//! ```text
//! DIR/                      0700
//!   root.pem                the trust bundle, rewritten from roots/; sidecars get a copy of it
//!   signing                 the id of the root that signs
//!   token.key               signs join tokens
//!   roots/<id>/cert.pem     a trusted root
//!   roots/<id>/key.pem      its key
//! ```
//!
//! Every file appears whole or not at all (written beside its place, then renamed), and with mode 0600 from its first
//! byte. A key that others can read is never used. Contents of keys never reach an error or a log.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CaError;

/// The most bytes that a file of the folder may have.
const MAX_FILE: u64 = 1 << 20;

/// A state folder that exists.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens a folder, and makes it (with its parents) where it is missing.
    pub(super) fn create(dir: &Path) -> Result<Self, CaError> {
        for dir in [dir.to_path_buf(), dir.join("roots")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| unwritable(&dir, e))?;
        }
        Ok(Self { dir: dir.into() })
    }

    /// Opens a folder that must hold a CA already.
    pub(super) fn existing(dir: &Path) -> Result<Self, CaError> {
        if !dir.join("roots").is_dir() {
            return Err(CaError::Empty { dir: dir.into() });
        }
        Ok(Self { dir: dir.into() })
    }

    /// Keeps other processes from changing the folder until the file is dropped.
    pub(super) fn lock(&self) -> Result<File, CaError> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.and_then(|file| file.lock().map(|()| file)).map_err(|e| unwritable(&path, e))
    }

    /// The ids of all roots, sorted.
    pub(super) fn root_ids(&self) -> Result<Vec<String>, CaError> {
        let roots = self.dir.join("roots");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&roots).map_err(|e| unreadable(&roots, e))? {
            let name = entry.map_err(|e| unreadable(&roots, e))?.file_name();
            // A name with a dot is a root that was being written when its writer died.
            if let Some(id) = name.to_str().filter(|id| !id.starts_with('.')) {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// A root's certificate, in PEM.
    pub(super) fn root_certificate(&self, id: &str) -> Result<String, CaError> {
        read(&self.dir.join("roots").join(id).join("cert.pem"), false)
    }

    /// A root's key, in PEM.
    pub(super) fn root_key(&self, id: &str) -> Result<String, CaError> {
        read(&self.root_key_path(id), true)
    }

    /// Where a root's key is, for messages.
    pub(super) fn root_key_path(&self, id: &str) -> PathBuf {
        self.dir.join("roots").join(id).join("key.pem")
    }

    /// Adds a root, whole or not at all.
    pub(super) fn add_root(&self, id: &str, certificate: &str, key: &str) -> Result<(), CaError> {
        let roots = self.dir.join("roots");
        let half = roots.join(format!(".{id}"));
        DirBuilder::new().mode(0o700).create(&half).map_err(|e| unwritable(&half, e))?;
        write(&half.join("cert.pem"), certificate)?;
        write(&half.join("key.pem"), key)?;
        fs::rename(&half, roots.join(id)).and_then(|()| sync(&roots)).map_err(|e| unwritable(&roots, e))
    }

    /// Takes a root away, with its key.
    pub(super) fn remove_root(&self, id: &str) -> Result<(), CaError> {
        let roots = self.dir.join("roots");
        let gone = roots.join(format!(".{id}"));
        fs::rename(roots.join(id), &gone)
            .and_then(|()| fs::remove_dir_all(&gone))
            .and_then(|()| sync(&roots))
            .map_err(|e| unwritable(&roots, e))
    }

    /// The id of the root that signs, where one was chosen.
    pub(super) fn signing(&self) -> Result<Option<String>, CaError> {
        let path = self.dir.join("signing");
        Ok(if path.exists() { Some(read(&path, false)?.trim().to_owned()) } else { None })
    }

    /// Chooses the root that signs.
    pub(super) fn set_signing(&self, id: &str) -> Result<(), CaError> {
        write(&self.dir.join("signing"), &format!("{id}\n"))
    }

    /// The key that signs join tokens, where there is one.
    pub(super) fn token_key(&self) -> Result<Option<String>, CaError> {
        let path = self.token_key_path();
        if path.exists() { read(&path, true).map(Some) } else { Ok(None) }
    }

    /// Where the key that signs join tokens is, for messages.
    pub(super) fn token_key_path(&self) -> PathBuf {
        self.dir.join("token.key")
    }

    /// Keeps the key that signs join tokens.
    pub(super) fn set_token_key(&self, key: &str) -> Result<(), CaError> {
        write(&self.token_key_path(), key)
    }

    /// Writes the trust bundle for others to copy.
    pub(super) fn set_bundle(&self, pem: &str) -> Result<(), CaError> {
        let path = self.dir.join("root.pem");
        if fs::read_to_string(&path).is_ok_and(|old| old == pem) {
            return Ok(());
        }
        write(&path, pem)
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Reads a text file; a private one only when nobody but its owner may.
fn read(path: &Path, private: bool) -> Result<String, CaError> {
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mode = file.metadata().map_err(|e| unreadable(path, e))?.mode() & 0o7777;
    if private && mode & 0o077 != 0 {
        return Err(CaError::Exposed { path: path.into(), mode });
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| unreadable(path, e))?;
    Ok(text)
}

/// Puts a file in place whole, with mode 0600.
fn write(path: &Path, text: &str) -> Result<(), CaError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let half = path.with_file_name(format!(".{name}.{:016x}", fastrand::u64(..)));
    let dir = path.parent().unwrap_or(Path::new("."));
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&half, path)?;
        sync(dir)
    };
    put().map_err(|e| {
        // What matters is the first error; the half file may not even exist.
        let _ = fs::remove_file(&half);
        unwritable(path, e)
    })
}

/// Makes a folder's entries durable.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn unwritable(path: &Path, error: io::Error) -> CaError {
    CaError::Unwritable { path: path.into(), error }
}

fn unreadable(path: &Path, error: io::Error) -> CaError {
    CaError::Unreadable { path: path.into(), error }
}
