//! The folder: what is in it, and how it is replaced.
//!
//! It looks like a Secret that Kubernetes mounts. The files stand in a folder of their own, `..data` is a link to that,
//! and the names that readers know are links into `..data`. Renaming another link over `..data` replaces all of them at
//! once: nobody ever sees a key beside the certificate of another, and Envoy, which watches the folder for such a move,
//! reads them again. gRPC's file watcher finds them by itself.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use tulle_mesh::pem;

use crate::config::IdentityFiles;
use crate::tls::{Leaf, TrustBundle};

/// The leaf, and what is between it and a root; named as in a Secret of type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
/// Its key, in PKCS#8.
const KEY: &str = "tls.key";
/// Every root that the mesh trusts; named as cert-manager does.
const BUNDLE: &str = "ca.crt";
/// Tells Envoy of key and certificate, as its secret `default`.
const ENVOY_CERTIFICATE: &str = "default.sds.json";
/// Tells Envoy of the trust bundle, as its secret `ROOTCA`.
const ENVOY_BUNDLE: &str = "ROOTCA.sds.json";

/// The link that is replaced.
const DATA: &str = "..data";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A folder of certificates.
pub(super) struct Folder {
    /// Absolute.
    path: PathBuf,
    /// As Envoy is told.
    text: String,
}

impl Folder {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// When it can't be made or has no path in UTF-8.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let error = |reason: String| FolderError { path: path.into(), reason };
        fs::create_dir_all(path).map_err(|e| error(e.to_string()))?;
        let path = fs::canonicalize(path).map_err(|e| error(e.to_string()))?;
        let text =
            path.to_str().ok_or_else(|| error("its path is not UTF-8, which Envoy needs".into()))?.into();
        Ok(Self { path, text })
    }

    /// Where its files are.
    pub(super) fn files(&self) -> IdentityFiles {
        IdentityFiles {
            certificate_file: self.path.join(CERTIFICATE),
            key_file: self.path.join(KEY),
            bundle_file: self.path.join(BUNDLE),
        }
    }

    /// Replaces what it holds, all at once.
    ///
    /// # Errors
    /// When it can't be written; what it held stays.
    pub(super) fn write(&self, leaf: &Leaf, bundle: &TrustBundle) -> Result<(), FolderError> {
        let chain: String = leaf.chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        let roots: String = bundle.roots.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        let key = pem::encode(leaf.key_label(), leaf.key_der());
        let files = [
            (CERTIFICATE, chain, 0o644),
            (KEY, key, 0o600),
            (BUNDLE, roots, 0o644),
            (ENVOY_CERTIFICATE, self.envoy_certificate(), 0o644),
            (ENVOY_BUNDLE, self.envoy_bundle(), 0o644),
        ];
        self.replace(&files)
            .map_err(|error| FolderError { path: self.path.clone(), reason: error.to_string() })
    }

    fn replace(&self, files: &[(&str, String, u32)]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("..{}", now.as_nanos());
        let data = self.path.join(&name);
        DirBuilder::new().mode(0o755).create(&data)?;
        for (name, content, mode) in files {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(*mode).open(data.join(name))?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
        }
        self.link(Path::new(&name), DATA)?;
        for (name, ..) in files {
            let target = Path::new(DATA).join(name);
            if fs::read_link(self.path.join(name)).ok().as_ref() != Some(&target) {
                self.link(&target, name)?;
            }
        }
        self.clean(&name)
    }

    /// Puts a link in place of whatever has the name.
    fn link(&self, target: &Path, name: &str) -> io::Result<()> {
        let temporary = self.path.join(format!("..{}.new", name.trim_start_matches('.')));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(target, &temporary)?,
        }
        fs::rename(&temporary, self.path.join(name))
    }

    /// Takes away the keys of before, those of a run that was cut short too.
    fn clean(&self, but: &str) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_data = name.to_str().and_then(|name| name.strip_prefix("..")).is_some_and(is_number);
            if is_data && name != but && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn envoy_certificate(&self) -> String {
        self.envoy_secret(
            "default",
            "tls_certificate",
            json!({
                "certificate_chain": self.envoy_file(CERTIFICATE),
                "private_key": self.envoy_file(KEY),
                "watched_directory": { "path": self.text },
            }),
        )
    }

    fn envoy_bundle(&self) -> String {
        let trusted = self.envoy_file(BUNDLE);
        let context = json!({ "trusted_ca": trusted, "watched_directory": { "path": self.text } });
        self.envoy_secret("ROOTCA", "validation_context", context)
    }

    fn envoy_secret(&self, name: &str, kind: &str, value: Value) -> String {
        format!("{:#}\n", json!({ "resources": [{ "@type": SECRET, "name": name, kind: value }] }))
    }

    fn envoy_file(&self, name: &str) -> Value {
        json!({ "filename": format!("{}/{name}", self.text) })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Why the folder can't be used.
#[derive(Debug)]
pub(super) struct FolderError {
    path: PathBuf,
    reason: String,
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

#[cfg(test)]
mod tests;
