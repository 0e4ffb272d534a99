//! The program as such: tokens, completions, help, colours.

use std::time::SystemTime;

use tulle_control_plane::ca::Authority;

use crate::tulle::{folder, tulle, tulle_with};

#[test]
fn a_token_comes_from_the_state_of_a_control_plane() {
    let folder = folder(&[]);
    let missing =
        tulle(folder.path(), &["token", "--state", "state", "-n", "shop", "--service-account", "cart"]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.starts_with("error: "), "{}", missing.err);

    let domain = "td.example".parse().expect("valid");
    Authority::open(&folder.path().join("state"), &domain, SystemTime::now()).expect("a new CA");
    let args = ["token", "--state", "state", "-n", "shop", "--service-account", "cart", "--ttl", "10m"];
    let run = tulle(folder.path(), &args);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let token = run.out.trim_end();
    assert_eq!(token.split('.').count(), 3, "it is a JWT");
    assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "and nothing else");

    let bad = tulle(folder.path(), &["token", "--state", "state", "-n", "a/b", "--service-account", "cart"]);
    assert_eq!(bad.code, 1);
    let bad = tulle(folder.path(), &[&args[..6], &["--ttl", "10"]].concat());
    assert_eq!(bad.code, 2);
}

#[test]
fn every_shell_gets_its_completions() {
    let folder = folder(&[]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = tulle(folder.path(), &["completions", shell]);
        assert_eq!(run.code, 0, "{shell}: {}", run.err);
        for word in ["explain", "control-plane", "service-account"] {
            assert!(run.out.contains(word), "{shell} does not complete {word}");
        }
    }
}

#[test]
fn every_command_has_examples() {
    let folder = folder(&[]);
    for command in [
        "demo",
        "check",
        "explain",
        "status",
        "config",
        "inject",
        "uninject",
        "install",
        "uninstall",
        "token",
        "completions",
    ] {
        let run = tulle(folder.path(), &[command, "--help"]);
        assert_eq!(run.code, 0, "{command}");
        assert!(run.out.contains(&format!("Examples:\n  tulle {command}")), "{command}: {}", run.out);
    }
}

#[test]
fn colours_are_for_who_asks() {
    let folder = folder(&[("bad.yaml", "a: [1")]);
    let plain = tulle(folder.path(), &["check", "-f", "."]);
    assert!(plain.out.contains("error") && !plain.out.contains('\u{1b}'), "{:?}", plain.out);
    let forced = tulle_with(folder.path(), &["check", "-f", "."], &[("CLICOLOR_FORCE", "1")], "");
    assert!(forced.out.contains("\u{1b}["), "{:?}", forced.out);
}
