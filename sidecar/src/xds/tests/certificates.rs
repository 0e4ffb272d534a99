//! Certificates: issued, renewed, expired, from files, and bundles that change under way.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tulle_mesh::model::DownstreamTls;
use tulle_mesh::model::StringMatch;

use super::*;
use crate::balance::EndpointTls;
use crate::config::IdentityFiles;
use crate::tls::testing::{Authority, Request};
use crate::tls::{self, Material};

/// Waits for material that meets a condition.
async fn material(handle: &Handle, condition: impl Fn(&Material) -> bool) -> Arc<Material> {
    let mut held = handle.material.clone();
    let found = held.wait_for(|held| held.as_deref().is_some_and(&condition));
    let found = timeout(PATIENCE, found).await.expect("material in time").expect("runs");
    found.clone().expect("the condition asks for some")
}

#[tokio::test]
async fn a_short_lived_certificate_is_renewed_by_itself_and_no_connection_notices() {
    let mesh = Mesh::new();
    let server = ControlPlane::start(&mesh).await;
    *server.policy.lock().expect("no panic") = Ok(2);
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let first = material(&handle, |_| true).await;
        assert_eq!(first.identity.as_str(), CART);
        let web = mesh.authority.material("spiffe://mesh.test/ns/shop/sa/web");
        let (near, far) = duplex(1 << 16);
        let pin = EndpointTls {
            server_name: "outbound_.80_._.cart.shop".into(),
            identity: Some(CART.parse().expect("valid")),
            subject_alt_names: Arc::new([StringMatch::exact(CART)]),
        };
        let listener = DownstreamTls { require_client_certificate: true, alpn: Vec::new() };
        let address = SocketAddr::from(([192, 0, 2, 1], 8080));
        let (client, accepted) = tokio::join!(
            Box::pin(tls::connect(near, &web, &pin, None, address)),
            Box::pin(tls::accept(far, &first, &listener, address))
        );
        let (mut client, mut accepted) =
            (client.expect("connects").stream, accepted.expect("accepts").stream);

        let third = material(&handle, |material| material.generation >= 3).await;
        assert!(!first.is_valid(std::time::SystemTime::now()) || third.leaf.not_after > first.leaf.not_after);
        client.write_all(b"still here").await.expect("the old connection lives");
        let mut heard = [0; 10];
        accepted.read_exact(&mut heard).await.expect("the old connection lives");
        assert_eq!(&heard, b"still here");

        // The first proof is the token, each other the certificate before.
        let proofs = server.proofs();
        assert_eq!(proofs[0], "token Bearer let-me-in");
        assert_eq!(proofs[1], format!("certificate {}", first.leaf.serial));
        let in_force = snapshot(&handle, |now| now.tls.as_ref().is_some_and(|tls| tls.generation >= 3)).await;
        assert_eq!(in_force.tls.as_ref().expect("checked").identity.as_str(), CART);
    })
    .await;
}

#[tokio::test]
async fn a_stream_stands_on_the_certificate_and_a_renewed_one_makes_a_new_stream() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    *server.policy.lock().expect("no panic") = Ok(3);
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        let first = material(&handle, |_| true).await;
        assert_eq!(stream.proof, format!("certificate {}", first.leaf.serial));
        stream.subscribes(Kind::Listener).await;
        stream.send(&[inbound_listener()], &[]).await;
        snapshot(&handle, |now| now.inbound.len() == 1).await;

        let mut stream = server.stream().await;
        let second = material(&handle, |material| material.leaf.serial != first.leaf.serial).await;
        assert_eq!(stream.proof, format!("certificate {}", second.leaf.serial));
        assert_eq!(stream.subscribes(Kind::Listener).await.initial_resource_versions.len(), 1);
        assert_eq!(handle.snapshots.borrow().inbound.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn without_an_authority_the_stream_stands_on_the_token() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    *server.policy.lock().expect("no panic") = Err(tonic::Status::unimplemented("no authority here"));
    let (control, _handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        assert_eq!(server.stream().await.proof, "token Bearer let-me-in");
    })
    .await;
}

#[tokio::test]
async fn an_expired_certificate_gives_way_to_the_token() {
    let mesh = Mesh::new();
    let server = ControlPlane::start(&mesh).await;
    *server.policy.lock().expect("no panic") = Ok(2);
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        material(&handle, |_| true).await;
        *server.policy.lock().expect("no panic") =
            Err(tonic::Status::unavailable("the authority is on holiday"));
        // The token is renewed while the certificate is still the proof, as a projected one is.
        std::fs::write(mesh.path("token"), "a-new-one").expect("writes");
        let valid = |material: &Material| material.is_valid(std::time::SystemTime::now());
        while valid(material(&handle, |_| true).await.as_ref()) {
            tokio::time::sleep(MOMENT).await;
        }
        // One attempt may have been under way as it expired, by the certificate still.
        let before = server.proofs().len() + 1;
        while server.proofs().len() <= before {
            tokio::time::sleep(MOMENT).await;
        }
        *server.policy.lock().expect("no panic") = Ok(3600);
        material(&handle, valid).await;
        let proofs = server.proofs().split_off(before);
        assert!(proofs.iter().all(|proof| proof == "token Bearer a-new-one"), "{proofs:?}");
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_arrives_is_in_force_and_a_broken_one_is_rejected() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        material(&handle, |_| true).await;
        let mut stream = server.stream().await;
        assert_eq!(stream.subscribes(Kind::Secret).await.resource_names_subscribe, ["ROOTCA"]);
        let both = mesh.authority.pem() + &Authority::new("next root").pem();
        let nonce = stream.send(&[root_ca(both)], &[]).await;
        assert_eq!(stream.answers(&nonce).await, None);
        let now = material(&handle, |material| material.roots.len() == 2).await;
        assert_eq!(now.generation, 2);

        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
        let nonce = stream.send(&[root_ca(broken)], &[]).await;
        assert!(stream.answers(&nonce).await.expect("a NACK").contains("ROOTCA"));
        assert_eq!(handle.material.borrow().as_ref().expect("held").roots.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn an_identity_from_files_follows_them_and_asks_no_authority() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let mut config = mesh.config(server.address);
    let files = IdentityFiles {
        certificate_file: mesh.path("leaf.pem"),
        key_file: mesh.path("key.pem"),
        bundle_file: mesh.path("root.pem"),
    };
    config.identity = Some(files.clone());
    let write = |uri: &str| {
        let (chain, key) = mesh.authority.leaf_pem(&Request::workload(uri));
        std::fs::write(&files.key_file, key).expect("writes");
        std::fs::write(&files.certificate_file, chain).expect("writes");
    };
    write(CART);
    let (control, handle) = mesh.sidecar(config);
    beside(control.with_file_check(MOMENT), async {
        let first = material(&handle, |_| true).await;
        let mut stream = server.stream().await;
        assert_eq!(stream.subscribes(Kind::Listener).await.resource_names_subscribe, [INBOUND]);

        // Half of a pair changes nothing; the other half makes it whole.
        let (chain, key) = mesh.authority.leaf_pem(&Request::workload(CART));
        std::fs::write(&files.key_file, key).expect("writes");
        tokio::time::sleep(MOMENT * 4).await;
        assert_eq!(handle.material.borrow().as_ref().expect("held").generation, first.generation);
        std::fs::write(&files.certificate_file, chain).expect("writes");
        let second = material(&handle, |material| material.generation > first.generation).await;
        assert_ne!(second.leaf.serial, first.leaf.serial);
        assert!(server.proofs().is_empty());
        assert!(stream.left().iter().all(|request| request.type_url != Kind::Secret.type_url()));
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_the_control_plane_gets_no_token() {
    let mesh = Mesh::new();
    let named = |names: &[&str], uris: &[&str]| Request {
        names: names.iter().map(ToString::to_string).collect(),
        uris: uris.iter().map(ToString::to_string).collect(),
        ..Request::workload(CONTROL_PLANE)
    };
    // A workload of the mesh, even with the control plane's name; a server of another name; an expired one.
    for request in [
        named(&["control.test"], &["spiffe://mesh.test/ns/shop/sa/web"]),
        named(&["other.test"], &[]),
        Request { until: -10, from: -20, ..Request::workload(CONTROL_PLANE) },
    ] {
        let server = ControlPlane::start_as(&mesh, &request).await;
        let (control, handle) = mesh.sidecar(mesh.config(server.address));
        beside(control, async {
            let mut status = handle.status().await.expect("runs");
            while status.stream.last_error.is_none() {
                tokio::time::sleep(MOMENT).await;
                status = handle.status().await.expect("runs");
            }
            let error = status.stream.last_error.expect("checked");
            assert!(error.contains("wrong_identity") || error.contains("expired"), "{error}");
            assert!(handle.material.borrow().is_none());
            assert!(server.proofs().is_empty());
        })
        .await;
    }
    // A foreign control plane is known by its name alone.
    let server = ControlPlane::start_as(&mesh, &named(&["control.test"], &[])).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        material(&handle, |_| true).await;
    })
    .await;
}
