//! A network namespace that ends with its owner, or at the latest when the next test process starts.
//!
//! Names are `tulle-<process>-<its start>-<number>-<host>`: they tell whose a namespace is, and whether that process still
//! lives.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const FOLDER: &str = "/run/netns";
/// `ip netns exec` puts the files in here over those in `/etc`.
const ETC: &str = "/etc/netns";
const PREFIX: &str = "tulle-";
/// Held while namespaces are made or swept: `ip netns add` of several processes at once gets in its own way.
const LOCK: &str = "/run/tulle-tests.lock";

/// A network namespace. Dropping it ends every process in it.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
}

/// A prefix that no other network has, on this machine or in this process.
pub(super) fn unique_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let this = std::process::id();
    let started = start_of(this).expect("this process is there");
    format!("{PREFIX}{this}-{started}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Namespace {
    /// Makes an empty one; the first in this process sweeps what dead processes left.
    pub(super) fn make(name: String) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "hosts in network namespaces need root: run tests/run as root"
        );
        let lock = File::create(LOCK).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.unwrap_or_else(|error| panic!("{LOCK}: {error}"));
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        ip(&["netns", "add", &name], "");
        Self { name }
    }

    /// Its name, as `ip netns` knows it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs several `ip` commands in it, one a line.
    pub(super) fn ip(&self, commands: &str) {
        ip(&["-n", &self.name, "-batch", "-"], commands);
    }

    /// Does something with this thread in the namespace. A socket stays in the namespace in which it was made.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let open = |path: &str| File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let _back = Back(open("/proc/thread-self/ns/net"));
        enter(&open(&format!("{FOLDER}/{}", self.name)));
        work()
    }

    /// Writes to a file below `/proc/sys/net`, which shows each thread its own namespace's settings.
    pub(super) fn set(&self, setting: &str, value: &str) {
        let path = format!("/proc/sys/net/{setting}");
        self.within(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Puts a file over the one of that name in `/etc`, for processes that `ip netns exec` starts from now on.
    pub(super) fn etc(&self, file: &str, text: &str) {
        let folder = PathBuf::from(ETC).join(&self.name);
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(file), text));
        written.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Brings the thread back, also out of a panic.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        enter(&self.0);
    }
}

fn enter(namespace: &File) {
    use std::os::fd::AsFd;
    let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    moved.expect("root may enter a network namespace");
}

/// Removes the namespaces of processes that ended without doing so.
fn sweep() {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut left = [names(FOLDER), names(ETC)].concat();
    left.sort();
    left.dedup();
    for name in left {
        if owner_is_gone(&name) {
            remove(&name);
        }
    }
}

/// Whether a namespace is one of ours, and its process is gone or another one by now.
fn owner_is_gone(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).into_iter().flat_map(|rest| rest.split('-'));
    let (Some(Ok(owner)), Some(Ok(started))) =
        (parts.next().map(str::parse::<u32>), parts.next().map(str::parse::<u64>))
    else {
        return false;
    };
    start_of(owner) != Some(started)
}

/// When a process started, in clock ticks since boot; `None` where there is none.
fn start_of(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in parentheses, with whatever in it; the start is the 22nd.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn remove(name: &str) {
    let path = format!("{FOLDER}/{name}");
    if let Ok(file) = fs::metadata(&path) {
        end_processes(file.ino());
        let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    }
    let _ = fs::remove_dir_all(PathBuf::from(ETC).join(name));
}

/// Kills what still runs in a namespace, known by its inode.
fn end_processes(inode: u64) {
    let this = std::process::id();
    let link = format!("net:[{inode}]");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let inside = fs::read_link(entry.path().join("ns/net"));
        if id != this && inside.is_ok_and(|inside| inside.as_os_str() == link.as_str()) {
            let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// Runs `ip`, with commands on its standard input where it is a batch.
fn ip(arguments: &[&str], batch: &str) {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("ip: {error}; run tests/setup"));
    let mut input = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut input, batch.as_bytes()).expect("ip reads its batch");
    drop(input);
    let output = child.wait_with_output().expect("it can be waited for");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {words}{batch}");
}
