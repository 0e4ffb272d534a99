//! Work in a pod's network namespace, done by a thread of its own that ends with the work.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::failure::{Code, Failure};

/// Does something in the network namespace at a path.
///
/// # Errors
/// When there is no network namespace, it can't be entered, or it is the one of this process: that is the node's.
pub(super) fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    let failure = |why: String| {
        let message = format!("the network namespace {} can't be entered", path.display());
        Failure::new(Code::Namespace, message, why)
    };
    let entered = |namespace: File| {
        if is_own(&namespace)? {
            return Err(io::Error::other("it is the node's own, where no rules belong"));
        }
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    };
    let namespace = File::open(path).map_err(|error| failure(error.to_string()))?;
    let done = thread::scope(|scope| scope.spawn(|| entered(namespace).map(|()| work())).join());
    match done {
        Ok(done) => done.map_err(|error| failure(error.to_string())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn is_own(namespace: &File) -> io::Result<bool> {
    let (given, own) = (namespace.metadata()?, fs::metadata("/proc/self/ns/net")?);
    Ok((given.dev(), given.ino()) == (own.dev(), own.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_other_network_namespace_is_refused() {
        for (path, why) in [
            ("/proc/self/ns/net", "node's own"),
            ("/proc/self/ns/mnt", "Invalid argument"),
            ("/proc/version", "Invalid argument"),
            ("/nowhere", "No such file"),
        ] {
            let failure = within(Path::new(path), || panic!("entered {path}")).expect_err(path);
            assert_eq!(failure.code, Code::Namespace);
            let said = failure.object("1.0.0").to_string();
            assert!(said.contains(why) || said.contains("not permitted"), "{said}");
        }
    }
}
