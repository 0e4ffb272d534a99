//! Gives memory back that only the start needed.
//!
//! Reading settings and making the first connections touches most of the program's text, and the kernel maps 64 KB around
//! each touch. What is idle afterwards needs a fraction of it. This lets go of all of it once: what is still in use is
//! mapped again from the page cache by a soft fault, the rest is the kernel's to reclaim.
//!
//! In: the kernel's list of this process's mappings. Out: nothing but less resident memory. Never touches a page that
//! can be written.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::xds::Readiness;

/// How long what a start has set in motion takes to come to rest.
const REST: Duration = Duration::from_secs(1);

/// Waits until the sidecar is ready, and gives back what it does not need any more.
pub(super) async fn shrink(mut readiness: watch::Receiver<Readiness>) {
    if readiness.wait_for(|now| now.certificate && now.configuration).await.is_err() {
        return;
    }
    sleep(REST).await;
    if let Err(error) = drop_text() {
        tracing::debug!(%error, "can't give back the pages of the start");
    }
}

fn drop_text() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    for (start, end) in text(&fs::read_to_string("/proc/self/maps")?, &program) {
        release(start, end)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "there is no safe call for it; the only one of the workspace")]
fn release(start: usize, end: usize) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a mapping of the program's own file that can't be written, as `text` makes sure. None of its
    // pages differs from the file, so that what is read from it after the call is what was read before.
    unsafe { madvise(address, end - start, Advice::LinuxDontNeed) }.map_err(Into::into)
}

/// Where `maps` (proc_pid_maps(5)) has the program's text: mapped privately, executable and not writable.
fn text(maps: &str, program: &Path) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        // Of offset, device and inode the inode is the last; the path, which may hold spaces, is the rest.
        let path = line.find('/').map(|start| &line[start..])?;
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (permissions == "r-xp" && Path::new(path) == program)
            .then_some((address(start)?, address(end)?))
            .filter(|(start, end)| start < end)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_s_own_text_is_found() {
        let maps = "\
10000-18000 r--p 00000000 fe:00 1000 /usr/bin/a program
18000-20000 r-xp 00008000 fe:00 1000 /usr/bin/a program
20000-21000 rw-p 00010000 fe:00 1000 /usr/bin/a program
21000-22000 rwxp 00010000 fe:00 1000 /usr/bin/a program
30000-31000 r-xp 00000000 fe:00 1001 /usr/lib/libc.so.6
40000-41000 r-xp 00000000 00:00 0 [vdso]
broken
";
        assert_eq!(text(maps, Path::new("/usr/bin/a program")), [(0x18000, 0x20000)]);
    }

    #[test]
    fn a_program_goes_on_without_the_pages_it_has_let_go_of() {
        let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
        let program = fs::read_link("/proc/self/exe").expect("Linux has it");
        assert_eq!(text(&maps, &program).len(), 1, "{maps}");
        drop_text().expect("it may");
        assert_eq!(text(&maps, &program).len(), 1);
    }
}
