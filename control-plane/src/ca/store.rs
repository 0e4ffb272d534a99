//! The state: what must survive a restart of the control plane, in a folder, or in a cluster in a Secret, whose keys are
//! these paths with dots for slashes.
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

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::CaError;

/// The most bytes that a file of the folder may have.
const MAX_FILE: u64 = 1 << 20;

/// Where it is kept.
#[derive(Debug)]
pub(super) enum Store {
    /// A state folder that exists.
    Folder(PathBuf),
    /// What a Secret holds, read and written as a whole by [`super::secret`].
    Secret(Held),
}

/// The content of a Secret, by the path that each text has in a folder.
pub(super) struct Held {
    /// What it is called in messages.
    name: PathBuf,
    files: Mutex<BTreeMap<String, String>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a folder, and makes it (with its parents) where it is missing.
    pub(super) fn create(dir: &Path) -> Result<Self, CaError> {
        for dir in [dir.to_path_buf(), dir.join("roots")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| unwritable(&dir, e))?;
        }
        Ok(Self::Folder(dir.into()))
    }

    /// Opens a folder that must hold a CA already.
    pub(super) fn existing(dir: &Path) -> Result<Self, CaError> {
        if !dir.join("roots").is_dir() {
            return Err(CaError::Empty { dir: dir.into() });
        }
        Ok(Self::Folder(dir.into()))
    }

    /// What a Secret of a name holds.
    pub(super) fn of_secret(name: &str, files: BTreeMap<String, String>) -> Self {
        Self::Secret(Held { name: name.into(), files: Mutex::new(files) })
    }

    /// What a Secret is to hold; nothing for a folder.
    pub(super) fn held(&self) -> BTreeMap<String, String> {
        match self {
            Self::Folder(_) => BTreeMap::new(),
            Self::Secret(held) => held.lock().clone(),
        }
    }

    /// Keeps other processes from changing a folder until the file is dropped. A Secret is replaced only as it was read.
    pub(super) fn lock(&self) -> Result<Option<File>, CaError> {
        let Self::Folder(dir) = self else { return Ok(None) };
        let path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.and_then(|file| file.lock().map(|()| Some(file))).map_err(|e| unwritable(&path, e))
    }

    /// The ids of all roots, sorted.
    pub(super) fn root_ids(&self) -> Result<Vec<String>, CaError> {
        let mut ids = Vec::new();
        match self {
            Self::Folder(dir) => {
                let roots = dir.join("roots");
                for entry in fs::read_dir(&roots).map_err(|e| unreadable(&roots, e))? {
                    let name = entry.map_err(|e| unreadable(&roots, e))?.file_name();
                    // A name with a dot is a root that was being written when its writer died.
                    if let Some(id) = name.to_str().filter(|id| !id.starts_with('.')) {
                        ids.push(id.to_owned());
                    }
                }
            }
            Self::Secret(held) => {
                let files = held.lock();
                let id =
                    |path: &String| Some(path.strip_prefix("roots/")?.strip_suffix("/cert.pem")?.to_owned());
                ids.extend(files.keys().filter_map(id));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// A root's certificate, in PEM.
    pub(super) fn root_certificate(&self, id: &str) -> Result<String, CaError> {
        self.read(&format!("roots/{id}/cert.pem"), false)
    }

    /// A root's key, in PEM.
    pub(super) fn root_key(&self, id: &str) -> Result<String, CaError> {
        self.read(&format!("roots/{id}/key.pem"), true)
    }

    /// Where a root's key is, for messages.
    pub(super) fn root_key_path(&self, id: &str) -> PathBuf {
        self.dir().join("roots").join(id).join("key.pem")
    }

    /// Adds a root, whole or not at all.
    pub(super) fn add_root(&self, id: &str, certificate: &str, key: &str) -> Result<(), CaError> {
        match self {
            Self::Folder(dir) => {
                let roots = dir.join("roots");
                let half = roots.join(format!(".{id}"));
                DirBuilder::new().mode(0o700).create(&half).map_err(|e| unwritable(&half, e))?;
                write(&half.join("cert.pem"), certificate)?;
                write(&half.join("key.pem"), key)?;
                fs::rename(&half, roots.join(id))
                    .and_then(|()| sync(&roots))
                    .map_err(|e| unwritable(&roots, e))
            }
            Self::Secret(held) => {
                let mut files = held.lock();
                files.insert(format!("roots/{id}/cert.pem"), certificate.into());
                files.insert(format!("roots/{id}/key.pem"), key.into());
                Ok(())
            }
        }
    }

    /// Takes a root away, with its key.
    pub(super) fn remove_root(&self, id: &str) -> Result<(), CaError> {
        match self {
            Self::Folder(dir) => {
                let roots = dir.join("roots");
                let gone = roots.join(format!(".{id}"));
                fs::rename(roots.join(id), &gone)
                    .and_then(|()| fs::remove_dir_all(&gone))
                    .and_then(|()| sync(&roots))
                    .map_err(|e| unwritable(&roots, e))
            }
            Self::Secret(held) => {
                held.lock().retain(|path, _| !path.starts_with(&format!("roots/{id}/")));
                Ok(())
            }
        }
    }

    /// The id of the root that signs, where one was chosen.
    pub(super) fn signing(&self) -> Result<Option<String>, CaError> {
        Ok(if self.has("signing") { Some(self.read("signing", false)?.trim().to_owned()) } else { None })
    }

    /// Chooses the root that signs.
    pub(super) fn set_signing(&self, id: &str) -> Result<(), CaError> {
        self.write("signing", &format!("{id}\n"))
    }

    /// The key that signs join tokens, where there is one.
    pub(super) fn token_key(&self) -> Result<Option<String>, CaError> {
        if self.has("token.key") { self.read("token.key", true).map(Some) } else { Ok(None) }
    }

    /// Where the key that signs join tokens is, for messages.
    pub(super) fn token_key_path(&self) -> PathBuf {
        self.dir().join("token.key")
    }

    /// Keeps the key that signs join tokens.
    pub(super) fn set_token_key(&self, key: &str) -> Result<(), CaError> {
        self.write("token.key", key)
    }

    /// Writes the trust bundle for others to copy.
    pub(super) fn set_bundle(&self, pem: &str) -> Result<(), CaError> {
        if self.has("root.pem") && self.read("root.pem", false).is_ok_and(|old| old == pem) {
            return Ok(());
        }
        self.write("root.pem", pem)
    }

    /// The folder, or what stands for it in messages.
    pub(super) fn dir(&self) -> &Path {
        match self {
            Self::Folder(dir) => dir,
            Self::Secret(held) => &held.name,
        }
    }

    fn has(&self, path: &str) -> bool {
        match self {
            Self::Folder(dir) => dir.join(path).exists(),
            Self::Secret(held) => held.lock().contains_key(path),
        }
    }

    fn read(&self, path: &str, private: bool) -> Result<String, CaError> {
        match self {
            Self::Folder(dir) => read(&dir.join(path), private),
            Self::Secret(held) => {
                let missing = || unreadable(&held.name.join(path), io::ErrorKind::NotFound.into());
                held.lock().get(path).cloned().ok_or_else(missing)
            }
        }
    }

    fn write(&self, path: &str, text: &str) -> Result<(), CaError> {
        match self {
            Self::Folder(dir) => write(&dir.join(path), text),
            Self::Secret(held) => {
                held.lock().insert(path.into(), text.into());
                Ok(())
            }
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
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
