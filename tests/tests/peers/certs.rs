//! `tulle certs`: a workload's certificate in files, from a real control plane, looked at with OpenSSL.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tulle_tests::{LIMIT, NAMESPACE, TRUST_DOMAIN, TestMesh, binary, certs, identity, output_of, wait_for};

/// Runs a program to its end; standard output, and standard error where it fails.
async fn run(command: Command) -> Result<String, String> {
    let output = output_of(command).await;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

async fn openssl(args: &[&str], file: &Path) -> String {
    let mut command = Command::new("openssl");
    command.args(args).arg(file);
    run(command).await.unwrap_or_else(|error| panic!("openssl {args:?} {}: {error}", file.display()))
}

/// The serial number of what the folder holds, once OpenSSL has found that key, chain and roots belong together.
async fn verified(folder: &Path) -> String {
    // What is looked at must not be replaced meanwhile.
    let held = tempfile::tempdir().expect("a folder");
    let take = || async {
        let data = folder.join(std::fs::read_link(folder.join("..data")).expect("a link"));
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::fs::copy(data.join(name), held.path().join(name)).map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    wait_for(LIMIT, take).await.unwrap_or_else(|error| panic!("{error}"));
    let [certificate, key, roots] = ["tls.crt", "tls.key", "ca.crt"].map(|name| held.path().join(name));
    let roots = roots.to_str().expect("UTF-8");
    openssl(&["verify", "-purpose", "sslserver", "-CAfile", roots, "-untrusted", roots], &certificate).await;
    openssl(&["verify", "-purpose", "sslclient", "-CAfile", roots, "-untrusted", roots], &certificate).await;
    let of_certificate = openssl(&["x509", "-noout", "-pubkey", "-in"], &certificate).await;
    assert_eq!(of_certificate, openssl(&["pkey", "-pubout", "-in"], &key).await, "key and certificate");
    openssl(&["x509", "-noout", "-serial", "-in"], &certificate).await
}

fn folder(mesh: &TestMesh) -> PathBuf {
    mesh.folder.path().join("certs/web")
}

#[tokio::test]
async fn a_certificate_is_written_once_for_who_has_a_token() {
    let mesh = TestMesh::start().await;
    let folder = folder(&mesh);
    let said = run(certs(&mesh, "web", &folder)).await.expect("a certificate");
    assert!(said.contains(&identity("web")), "{said}");

    verified(&folder).await;
    let names = openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in"], &folder.join("tls.crt")).await;
    assert!(names.contains(&format!("URI:{}", identity("web"))), "{names}");
    let mode =
        |name: &str| std::fs::metadata(folder.join(name)).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode("tls.key"), 0o600);
    for name in ["default.sds.json", "ROOTCA.sds.json"] {
        let text = std::fs::read_to_string(folder.join(name)).expect("a file");
        assert!(text.contains("watched_directory") && !text.contains("PRIVATE"), "{text}");
    }

    // Another one, by the certificate alone.
    let first = verified(&folder).await;
    std::fs::remove_file(mesh.mesh.token(NAMESPACE, "web").expect("a token")).expect("a file");
    let mut again = certs_without_token(&mesh, &folder);
    again.args(["--service-account", "web"]);
    run(again).await.expect("a certificate");
    assert_ne!(verified(&folder).await, first);
}

#[tokio::test]
async fn who_proves_nothing_or_is_someone_else_gets_none_and_no_token_is_told() {
    let mesh = TestMesh::start().await;
    let folder = folder(&mesh);
    let mut nobody = certs_without_token(&mesh, &folder);
    nobody.args(["--service-account", "web"]);
    let error = run(nobody).await.expect_err("no proof");
    assert!(error.contains("no proof of identity"), "{error}");

    let path = mesh.mesh.token(NAMESPACE, "cart").expect("a token");
    let mut other = certs_without_token(&mesh, &folder);
    other.args(["--service-account", "web", "--token-file"]).arg(&path);
    let error = run(other).await.expect_err("another's token");
    assert!(error.contains(&identity("cart")) && error.contains(&identity("web")), "{error}");

    let token = std::fs::read_to_string(&path).expect("a file");
    let (head, _) = token.trim().rsplit_once('.').expect("a token has parts");
    let forged = mesh.folder.path().join("forged");
    std::fs::write(&forged, format!("{head}.AAAA")).expect("a file");
    let mut forger = certs_without_token(&mesh, &folder);
    forger.args(["--service-account", "cart", "--token-file"]).arg(&forged);
    let error = run(forger).await.expect_err("a forged token");
    assert!(!error.contains(head), "{error}");
    assert!(!folder.join("tls.crt").exists(), "there is nothing to write");
}

#[tokio::test]
async fn a_watched_certificate_is_renewed_whole_and_follows_the_roots() {
    let mesh = TestMesh::start_with(&["--leaf-lifetime", "16s"]).await;
    let folder = folder(&mesh);
    let log = mesh.folder.path().join("certs.log");
    let mut command = certs(&mesh, "web", &folder);
    command.arg("--watch").stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.stderr(std::fs::File::create(&log).expect("a file"));
    let mut child = command.spawn().expect("it starts");
    let said = || std::fs::read_to_string(&log).expect("a file");

    let written = || async {
        if folder.join("tls.crt").exists() { Ok(()) } else { Err(format!("no certificate:\n{}", said())) }
    };
    wait_for(LIMIT, written).await.unwrap_or_else(|error| panic!("{error}"));
    let mut serials = vec![verified(&folder).await];
    while serials.len() < 3 {
        let now = || async {
            let now = verified(&folder).await;
            if serials.contains(&now) {
                Err(format!("{now} is in force still:\n{}", said()))
            } else {
                Ok(now)
            }
        };
        let renewed = wait_for(LIMIT, now).await.unwrap_or_else(|error| panic!("{error}"));
        serials.push(renewed);
    }

    let roots = || std::fs::read_to_string(folder.join("ca.crt")).expect("a file").matches("BEGIN").count();
    assert_eq!(roots(), 1);
    let mut rotate = Command::new(binary("tulle-control-plane"));
    rotate.args(["rotate-root", "prepare", "--state"]).arg(&mesh.mesh.state);
    run(rotate).await.expect("another root");
    let both = || async { if roots() == 2 { Ok(()) } else { Err(format!("one root:\n{}", said())) } };
    wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"));
    verified(&folder).await;

    assert!(child.try_wait().expect("it can be asked for").is_none(), "it ended:\n{}", said());
    let folders = std::fs::read_dir(&folder)
        .expect("a folder")
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())));
    assert!(folders.count() <= 2, "keys of before are left");
    let key = std::fs::read_to_string(folder.join("tls.key")).expect("a file");
    let token = std::fs::read_to_string(mesh.mesh.state.join("shop.web.token")).expect("a file");
    let secret = key.lines().nth(1).expect("a line");
    assert!(!said().contains(secret) && !said().contains(token.trim()), "{}", said());
    child.kill().await.expect("it runs");
}

/// Without a proof and without a service account.
fn certs_without_token(mesh: &TestMesh, folder: &Path) -> Command {
    let mut command = Command::new(binary("tulle"));
    command.arg("certs").arg(folder).args(["--namespace", NAMESPACE, "--trust-domain", TRUST_DOMAIN]);
    command.args(["--control-plane", &mesh.mesh.xds().to_string(), "--root-file"]);
    command.arg(mesh.mesh.state.join("root.pem"));
    command
}
