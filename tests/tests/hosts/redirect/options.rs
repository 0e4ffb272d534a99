//! How rules are made, shown, replaced and removed, and what is refused.

use tulle_tests::hosts::{APP_UID, Network};
use tulle_tests::{binary, output_of};

use super::{Client, Finished, Scene, sidecar};

#[tokio::test]
async fn what_dry_run_prints_is_what_netlink_makes() {
    let scene = Scene::new();
    let empty = scene.rules().await;
    let ports: Vec<String> = (1..=500).map(|number| (number * 2).to_string()).collect();
    let v4 = (0..250).map(|number| format!("10.{number}.0.0/17"));
    let subnets: Vec<String> = v4.chain((0..250).map(|number| format!("fd00:{number:x}::/32"))).collect();
    let (ports, subnets) = (ports.join(","), subnets.join(","));
    let all = [
        "--uid=3000",
        "--gid=3001",
        "--outbound-port=16001",
        "--inbound-port=16006",
        "--dns-port=16053",
        "--skip-inbound-ports=22,8000-8010,65000-65535",
        "--skip-outbound-ports=1-65535",
        "--skip-subnets=10.0.0.0/8,11.0.0.0/9,192.0.2.1,255.255.255.255,fd00:1::/64,ffff::/16",
        "--own-ports=",
    ];
    let many = ["--skip-inbound-ports", &ports, "--skip-outbound-ports", &ports, "--skip-subnets", &subnets];
    for options in [&[][..], &all, &many, &["--skip-subnets", "0.0.0.0/0,::/0"]] {
        scene.redirect(options).await;
        let made = scene.rules().await;
        let text = scene.init(&[options, &["--dry-run"]].concat()).await.stdout;
        assert_eq!(scene.rules().await, made, "it only prints");
        // Loaded in place of those that are there, and where there are none.
        for _ in 0..2 {
            load(&scene, &text, &["--check"]).await;
            load(&scene, &text, &[]).await;
            assert_eq!(scene.rules().await, made, "{text}");
            scene.redirect(&["--cleanup"]).await;
        }
        assert_eq!(scene.rules().await, empty);
    }
    // The text for a cleanup removes them, also twice.
    scene.redirect(&[]).await;
    let text = scene.init(&["--cleanup", "--dry-run"]).await.stdout;
    for _ in 0..2 {
        load(&scene, &text, &[]).await;
        assert_eq!(scene.rules().await, empty);
    }
}

async fn load(scene: &Scene, text: &str, options: &[&str]) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("it is ours");
    let mut command = scene.here.command(0, "nft");
    command.args(options).arg("-f").arg(file.path());
    let loaded = Finished::from(output_of(command).await);
    assert!(loaded.status.success(), "{loaded:?}");
}

#[tokio::test]
async fn rules_are_made_once_replaced_and_removed() {
    let scene = Scene::new();
    let others = "table ip nat {\n chain output {\n type nat hook output priority -100; policy accept;\n \
                  tcp dport 7 redirect to :8080\n }\n}\ntable inet other {\n set tulle {\n type inet_service; \
                  elements = { 80 }\n }\n}\n";
    load(&scene, others, &[]).await;
    let before = scene.rules().await;
    let there = scene.there.addresses()[0];
    for mode in ["nftables", "iptables"] {
        scene.redirect(&["--mode", mode, "--skip-outbound-ports", "8080"]).await;
        scene.expect(Client::App, there, 8080, "remote").await;
        scene.redirect(&["--mode", mode]).await;
        let made = scene.rules().await;
        scene.expect(Client::App, there, 8080, "outbound").await;
        // Again, and from the environment.
        scene.redirect(&["--mode", mode]).await;
        assert_eq!(scene.rules().await, made);
        let mut command = scene.here.command(0, binary("tulle-sidecar"));
        command.arg("init").env("TULLE_MODE", mode).env("TULLE_SKIP_OUTBOUND_PORTS", "8080");
        assert!(output_of(command).await.status.success());
        scene.expect(Client::App, there, 8080, "remote").await;
        // Rules of others hold for what is skipped, and stay when ours go; what is not there is removed as well.
        for _ in 0..2 {
            scene.redirect(&["--mode", mode, "--cleanup"]).await;
            scene.expect(Client::App, there, 8080, "remote").await;
        }
        if mode == "nftables" {
            assert_eq!(scene.rules().await, before);
        }
    }
    let after = scene.rules().await.to_string();
    assert!(!after.contains("TULLE_") && after.contains(r#""name":"other""#), "{after}");
}

#[tokio::test]
async fn the_text_for_iptables_is_what_its_programs_take() {
    let scene = Scene::new();
    let ports = (1..=40).map(|number| format!("{}-{}", number * 10, number * 10 + number % 3));
    let ports = ports.collect::<Vec<_>>().join(",");
    let options = ["--mode=iptables", "--dns-port=16053", "--gid=9", "--skip-subnets=10.0.0.0/8,fd00:1::/64"];
    let options = [&options[..], &["--skip-inbound-ports", &ports]].concat();
    scene.redirect(&options).await;
    let made = saved(&scene).await;
    scene.redirect(&["--mode=iptables", "--cleanup"]).await;
    let gone = saved(&scene).await;
    restore(&scene, &scene.init(&[&options[..], &["--dry-run"]].concat()).await.stdout).await;
    assert_eq!(saved(&scene).await, made);
    restore(&scene, &scene.init(&["--mode=iptables", "--cleanup", "--dry-run"]).await.stdout).await;
    assert_eq!(saved(&scene).await, gone);
}

/// Gives each family's program its part of the text.
async fn restore(scene: &Scene, text: &str) {
    let (v4, v6) = text.split_once("# ip6tables-restore").expect("a part for each family");
    for (program, text) in [("iptables-restore", v4.to_owned()), ("ip6tables-restore", format!("#{v6}"))] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("it is ours");
        let mut command = scene.here.command(0, program);
        command.arg("--noflush").arg(file.path());
        let restored = Finished::from(output_of(command).await);
        assert!(restored.status.success(), "{program}: {restored:?}");
    }
}

/// The rules of both families as iptables shows them, without counters and times.
async fn saved(scene: &Scene) -> String {
    let mut rules = String::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = Finished::from(output_of(scene.here.command(0, program)).await);
        assert!(saved.status.success(), "{saved:?}");
        rules.extend(
            saved.stdout.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")),
        );
    }
    rules
}

#[tokio::test]
async fn one_capability_is_enough_and_without_it_the_error_names_it() {
    let scene = Scene::new();
    let empty = scene.rules().await;
    for arguments in [&["init"][..], &["init", "--cleanup"], &["init", "--mode", "iptables"]] {
        let refused = sidecar(&scene.here, APP_UID, arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        for part in ["CAP_NET_ADMIN", "as root", "securityContext.capabilities.add"] {
            assert!(refused.stderr.contains(part), "{refused:?}");
        }
    }
    let printed = sidecar(&scene.here, APP_UID, &["init", "--dry-run"]).await;
    assert!(printed.status.success() && printed.stdout.contains("table inet tulle"), "{printed:?}");
    assert_eq!(scene.rules().await, empty);

    let mut command = scene.here.command(0, "setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all,+net_admin"]);
    command.args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]);
    command.arg(binary("tulle-sidecar")).arg("init");
    let made = Finished::from(output_of(command).await);
    assert!(made.status.success(), "{made:?}");
    scene.expect(Client::App, scene.there.addresses()[0], 8080, "outbound").await;
}

#[tokio::test]
async fn iptables_that_is_not_there_is_named() {
    let network = Network::new();
    let host = network.host("here");
    let mut command = host.command(0, "env");
    command.arg("PATH=/nonexistent").arg(binary("tulle-sidecar")).args(["init", "--mode", "iptables"]);
    let failed = Finished::from(output_of(command).await);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(failed.stderr.contains("iptables-save is not there: install iptables"), "{failed:?}");
}

#[tokio::test]
async fn bad_options_are_refused_and_named() {
    let network = Network::new();
    let host = network.host("here");
    for (arguments, words) in [
        (&["--outbound-port=0"][..], "--outbound-port"),
        (&["--inbound-port=70000"], "--inbound-port"),
        (&["--dns-port=dns"], "--dns-port"),
        (&["--outbound-port=15006"], "--inbound-port: 15006 is already the port of --outbound-port"),
        (&["--dns-port=15001"], "--dns-port: 15001 is already the port of --outbound-port"),
        (&["--inbound-port=15010"], "15010 is already the port of the probes of redirection"),
        (&["--skip-inbound-ports=0"], r#""0" is not a port from 1 to 65535"#),
        (&["--skip-outbound-ports=80,70000"], r#""70000" is not a port"#),
        (&["--own-ports=9-8"], r#""9-8" is not a port"#),
        (&["--skip-subnets=10.0.0.0/33"], r#""10.0.0.0/33" is not a subnet"#),
        (&["--skip-subnets=10.0.0.1/8"], "bits outside of the prefix"),
        (&["--uid=0"], "programs of root would go around it"),
        (&["--uid=4294967295"], "the number of a user"),
        (&["--gid=0"], "--gid"),
        (&["--mode=ebpf"], "nftables, iptables"),
    ] {
        let refused = sidecar(&host, 0, &[&["init"], arguments].concat()).await;
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    let mut command = host.command(0, "nft");
    command.args(["list", "ruleset"]);
    assert_eq!(Finished::from(output_of(command).await).stdout, "");
}
