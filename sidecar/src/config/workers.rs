//! How many workers there are when nobody says: the CPU limit rounded up, two at the most.

use std::path::Path;

/// One for each CPU that this process may use, and two at the most: a sidecar is the smaller part of its pod.
pub(super) fn default_workers() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = quota(Path::new("/sys/fs/cgroup/cpu.max")).unwrap_or(usize::MAX);
    available.min(limit).clamp(1, MOST)
}

const MOST: usize = 2;

/// The CPUs that cgroup v2 allows, rounded up; `None` without a limit. (`available_parallelism` rounds down.)
fn quota(file: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota.div_ceil(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_rounded_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("cpu.max");
        for (text, cpus) in
            [("max 100000\n", None), ("50000 100000\n", Some(1)), ("100001 100000", Some(2)), ("x", None)]
        {
            std::fs::write(&file, text).expect("writable");
            assert_eq!(quota(&file), cpus, "{text:?}");
        }
    }
}
