//! The installer: keeps the plugin in a node's folders for as long as it runs.
//!
//! In: the folder of plugins, the folder of network configuration, and what others do there. Out: this program as
//! [`NAME`] among the plugins, and our entry in the configuration that runtimes use, the first by name. Files are
//! replaced whole, by renaming. At the end the entry goes, and the program stays: a runtime that has kept the old
//! configuration runs it once more for each pod that it removes.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fmt};

use clap::Args;
use notify::{RecursiveMode, Watcher};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::NAME;
use super::conflist::{ConflistError, with_entry, without_entry};

/// How long to wait for a change before looking anyway.
const LOOK: Duration = Duration::from_secs(10);

/// How long a writer may take from its first change to its last.
const SETTLE: Duration = Duration::from_millis(50);

/// Where the container runtime looks.
#[derive(Clone, Debug, Args)]
pub struct Folders {
    /// The folder of CNI plugins.
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// The folder of CNI configuration.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// Installs the plugin, keeps it installed until SIGTERM or SIGINT, and takes its entry out again. What it does and what
/// hinders it goes to standard error.
///
/// # Errors
/// When the folders can't be used at all, or the entry can't be taken out.
pub fn install(folders: &Folders) -> Result<(), InstallError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| InstallError::File(path, error)
    };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(InstallError::System)?;
    runtime.block_on(async {
        let stop = |kind| signal(kind).map_err(InstallError::System);
        let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
        place_program(&folders.bin_dir).map_err(at(&folders.bin_dir))?;
        let (changed, mut changes) = mpsc::channel(1);
        // One that waits stands for all that follow.
        let mut watcher = notify::recommended_watcher(move |_| {
            let _ = changed.try_send(());
        })
        .map_err(InstallError::Watch)?;
        watcher.watch(&folders.conf_dir, RecursiveMode::NonRecursive).map_err(InstallError::Watch)?;
        let mut said = String::new();
        loop {
            let now = match keep(&folders.conf_dir) {
                Ok(path) => format!("chained in {}", path.display()),
                Err(error) => format!("not chained: {error}"),
            };
            if now != said {
                eprintln!("{NAME}: {now}");
                said = now;
            }
            if !wait(&mut changes, &mut term, &mut int).await {
                break;
            }
        }
        leave(&folders.conf_dir)?;
        eprintln!("{NAME}: not chained any more");
        Ok(())
    })
}

/// Whether pods that start now get their rules: the program is in place, and chained in the configuration that is in
/// force.
///
/// # Errors
/// When not, and why.
pub fn is_installed(folders: &Folders) -> Result<(), InstallError> {
    let program = folders.bin_dir.join(NAME);
    let same = own_program().and_then(|own| Ok(own == fs::read(&program)?));
    match same {
        Ok(true) => {}
        Ok(false) => return Err(InstallError::OtherProgram(program)),
        Err(error) => return Err(InstallError::File(program, error)),
    }
    let (path, text) = in_force(&folders.conf_dir)?;
    match with_entry(&text) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(InstallError::NotChained(path)),
        Err(error) => Err(InstallError::Conflist(path, error.to_string())),
    }
}

/// Waits for a change; `false` when it is time to stop.
async fn wait(changes: &mut mpsc::Receiver<()>, term: &mut Signal, int: &mut Signal) -> bool {
    tokio::select! {
        _ = term.recv() => return false,
        _ = int.recv() => return false,
        _ = changes.recv() => sleep(SETTLE).await,
        () = sleep(LOOK) => {}
    }
    // The changes of that time are seen by what follows.
    let _ = changes.try_recv();
    true
}

fn own_program() -> io::Result<Vec<u8>> {
    fs::read(env::current_exe()?)
}

/// Puts this program among the plugins.
fn place_program(folder: &Path) -> io::Result<()> {
    let (own, path) = (own_program()?, folder.join(NAME));
    if fs::read(&path).is_ok_and(|there| there == own) {
        return Ok(());
    }
    replace(&path, &own, Permissions::from_mode(0o755))
}

/// Sees to it that the configuration in force, and no other, has the entry. Returns its path.
fn keep(folder: &Path) -> Result<PathBuf, InstallError> {
    let (first, text) = in_force(folder)?;
    match with_entry(&text) {
        Ok(Some(edited)) => rewrite(&first, &text, &edited)?,
        Ok(None) => {}
        Err(error) => return Err(InstallError::Conflist(first, error.to_string())),
    }
    for path in files(folder)?.iter().filter(|path| **path != first) {
        take_out(path)?;
    }
    Ok(first)
}

/// Takes the entry out of every configuration.
fn leave(folder: &Path) -> Result<(), InstallError> {
    files(folder)?.iter().try_for_each(|path| take_out(path))
}

fn take_out(path: &Path) -> Result<(), InstallError> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    match without_entry(&text) {
        Ok(Some(edited)) => rewrite(path, &text, &edited),
        // What can't be read by us has no entry of ours.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The configuration that runtimes use: the first by name that can be read at all.
fn in_force(folder: &Path) -> Result<(PathBuf, String), InstallError> {
    for path in files(folder)? {
        match fs::read_to_string(&path) {
            Ok(text) if !matches!(without_entry(&text), Err(ConflistError::Json(_))) => {
                return Ok((path, text));
            }
            // A writer is not done, or runtimes pass it over too.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(InstallError::File(path, error)),
        }
    }
    Err(InstallError::NoConfiguration(folder.to_owned()))
}

/// What runtimes take for configuration, in their order.
fn files(folder: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let listed = || -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    };
    listed().map_err(|error| InstallError::File(folder.to_owned(), error))
}

/// Replaces a file that still has the text that the edit is of; one that has changed again will be looked at again.
fn rewrite(path: &Path, text: &str, edited: &str) -> Result<(), InstallError> {
    let replaced = || {
        let permissions = fs::metadata(path)?.permissions();
        if fs::read_to_string(path)? == text {
            replace(path, edited.as_bytes(), permissions)?;
        }
        Ok(())
    };
    replaced().map_err(|error| InstallError::File(path.to_owned(), error))
}

/// Puts a file in place at once, under a name that no runtime reads until then.
fn replace(path: &Path, content: &[u8], permissions: Permissions) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tulle-cni");
    let temporary = PathBuf::from(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(permissions)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Why the plugin is not installed.
#[derive(Debug)]
pub enum InstallError {
    /// A file or folder can't be used.
    File(PathBuf, io::Error),
    /// No configuration is there; the cluster's own network is not set up yet.
    NoConfiguration(PathBuf),
    /// This configuration can't have the entry.
    Conflist(PathBuf, String),
    /// This configuration does not have the entry.
    NotChained(PathBuf),
    /// Another version of the program is there.
    OtherProgram(PathBuf),
    /// Changes can't be watched for.
    Watch(notify::Error),
    /// The system gives no event queue or signals.
    System(io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => {
                write!(f, "{}: {error}; mount the node's folder there", path.display())
            }
            Self::NoConfiguration(folder) => {
                write!(
                    f,
                    "{}: no network configuration; install the cluster's own network first",
                    folder.display()
                )
            }
            Self::Conflist(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NotChained(path) => write!(f, "{}: the plugin is not in it", path.display()),
            Self::OtherProgram(path) => write!(f, "{}: it is another version", path.display()),
            Self::Watch(error) => write!(f, "changes can't be watched: {error}"),
            Self::System(error) => write!(f, "no event queue: {error}"),
        }
    }
}

impl std::error::Error for InstallError {}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = TempDir::new().expect("a folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("it can be written");
        }
        folder
    }

    fn has_entry(folder: &TempDir, name: &str) -> bool {
        fs::read_to_string(folder.path().join(name)).expect(name).contains(NAME)
    }

    #[test]
    fn only_the_configuration_in_force_has_the_entry() {
        let folder =
            folder(&[("20-b.conflist", LIST), ("05-broken.conflist", "{"), ("00-x.conflist.bak", LIST)]);
        let first = keep(folder.path()).expect("there is one");
        assert_eq!(first.file_name().and_then(|name| name.to_str()), Some("20-b.conflist"));
        assert!(has_entry(&folder, "20-b.conflist"));
        // One that comes before it takes over.
        fs::write(folder.path().join("10-a.conflist"), LIST).expect("it can be written");
        keep(folder.path()).expect("there is one");
        assert!(has_entry(&folder, "10-a.conflist") && !has_entry(&folder, "20-b.conflist"));
        leave(folder.path()).expect("it can be written");
        assert!(!has_entry(&folder, "10-a.conflist") && !has_entry(&folder, "00-x.conflist.bak"));
        assert_eq!(fs::read_to_string(folder.path().join("05-broken.conflist")).expect("there"), "{");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 4);
    }

    #[test]
    fn a_file_keeps_its_permissions_and_one_that_changes_meanwhile_its_text() {
        let folder = folder(&[("a.conflist", LIST)]);
        let path = folder.path().join("a.conflist");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        keep(folder.path()).expect("there is one");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        rewrite(&path, LIST, "late").expect("nothing is wrong");
        assert!(has_entry(&folder, "a.conflist"));
    }

    #[test]
    fn what_can_not_be_chained_to_is_named() {
        let single = r#"{"cniVersion":"1.0.0","type":"bridge"}"#;
        for (files, why) in [
            (vec![], "no network configuration"),
            (vec![("10-a.conf", single), ("20-b.conflist", LIST)], "10-a.conf: no list of plugins"),
        ] {
            let folder = folder(&files);
            let error = keep(folder.path()).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(keep(Path::new("/nowhere")).expect_err("no folder").to_string().contains("/nowhere"));
    }

    #[test]
    fn installed_is_this_program_and_its_entry() {
        let folder = folder(&[("a.conflist", LIST)]);
        let folders = Folders { bin_dir: folder.path().into(), conf_dir: folder.path().into() };
        let why = || is_installed(&folders).expect_err("something is missing").to_string();
        assert!(why().contains("No such file"));
        fs::write(folder.path().join(NAME), "old").expect("it can be written");
        assert!(why().contains("another version"));
        place_program(folder.path()).expect("it can be written");
        assert!(why().contains("the plugin is not in it"));
        keep(folder.path()).expect("there is one");
        is_installed(&folders).unwrap_or_else(|error| panic!("{error}"));
        let mode = fs::metadata(folder.path().join(NAME)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
