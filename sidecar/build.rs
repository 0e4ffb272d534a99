//! Makes what ships smaller, on disk and in memory, by what the linker can do.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=release.ld");
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    let is = |variable, value| env::var(variable).is_ok_and(|set| set == value);
    // The only target whose linker is LLD by default; others need not know these options.
    if !is("PROFILE", "release") || !is("TARGET", "x86_64-unknown-linux-gnu") {
        return;
    }
    let link = |argument: &str| println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
    // A relocation of a pointer takes 24 bytes, and all are read at the start; packed it takes a bit or so. Needs glibc
    // 2.36 or later.
    link("-z,pack-relative-relocs");
    // Functions that are the same to the byte are there once.
    link("--icf=all");
    // What is hardly ever called (panics, growth) lies apart from what is.
    link("-z,keep-text-section-prefix");
    // Debuggers and profilers need what unwinds; a build for them has debug information.
    if is("DEBUG", "false") {
        let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{folder}/release.ld");
        link("--no-eh-frame-hdr");
    }
}
