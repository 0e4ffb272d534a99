//! The CA, over real sockets and on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::support::{ControlPlane, DeltaStream, connect, create_certificate, csr, csr_with};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::Code;
use tulle_control_plane::ca::{Authority, BACKDATE, CaError, LEAF_LIFETIME, issuer, rotation, tokens};
use tulle_control_plane::xds::Kind;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn a_token_gives_a_certificate_for_its_identity() {
    let plane = ControlPlane::start().await;
    let token = plane.token("shop", "web");
    let (key, request) = csr(&[WEB]);
    let chain = create_certificate(plane.connect().await, Some(&token), &request, 3600).await.unwrap();
    let [leaf, root] = chain.as_slice() else { panic!("a leaf and the root, not {}", chain.len()) };
    assert_eq!(*root, plane.root());

    let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    assert_eq!(issuer::spiffe_id(&der).unwrap().as_str(), WEB);
    let (not_before, not_after) = issuer::validity(&der).unwrap();
    let life = not_after.duration_since(not_before).unwrap();
    assert_eq!(life, Duration::from_secs(3600) + BACKDATE);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "there is no subject, so the names are critical");
    assert_eq!(names.value.general_names.len(), 1);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    assert!(parsed.raw_serial().len() >= 16);

    // It serves to connect, and to get the next one without a token.
    let channel = connect(plane.address, root, Some((leaf, &key.serialize_pem()))).await.unwrap();
    let (_, request) = csr(&[]);
    let renewed = create_certificate(channel.clone(), None, &request, 0).await.unwrap();
    let der = CertificateDer::from_pem_slice(renewed[0].as_bytes()).unwrap();
    assert_eq!(issuer::spiffe_id(&der).unwrap().as_str(), WEB, "the same identity");
    let (_, until) = issuer::validity(&der).unwrap();
    let left = until.duration_since(SystemTime::now()).unwrap();
    assert!(left > LEAF_LIFETIME - Duration::from_secs(60) && left <= LEAF_LIFETIME, "{left:?}");

    // The proxy that it connects is listed with it.
    let mut stream = DeltaStream::open(channel, None).await.unwrap();
    stream.subscribe(Kind::Route, &["r"]).await;
    stream.next().await;
    let status = plane.proxies.status().remove(0);
    assert_eq!(status.identity, WEB);
    assert_eq!(status.certificate_expires.unwrap().0, not_after);
    assert_eq!(status.root.unwrap(), plane.authority.bundle().borrow().roots[0].id);
    plane.stop().await;
}

#[tokio::test]
async fn a_request_for_another_identity_is_refused_by_name() {
    let plane = ControlPlane::start().await;
    let token = plane.token("shop", "web");
    let other = "spiffe://cluster.local/ns/shop/sa/cart";
    let (_, request) = csr(&[WEB, other]);
    let refused = create_certificate(plane.connect().await, Some(&token), &request, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(other) && refused.message().contains(WEB), "{}", refused.message());

    // Nor can a certificate be renewed for another identity, with or without a token for that.
    let (key, request) = csr(&[]);
    let chain = create_certificate(plane.connect().await, Some(&token), &request, 0).await.unwrap();
    let mine = Some((chain[0].as_str(), key.serialize_pem()));
    let mine = mine.as_ref().map(|(certificate, key)| (*certificate, key.as_str()));
    let channel = connect(plane.address, &plane.root(), mine).await.unwrap();
    let (_, request) = csr(&[other]);
    let refused = create_certificate(channel, None, &request, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let text = plane.metrics.text().unwrap();
    assert!(
        text.contains("tulle_control_plane_certificates_total{result=\"permission_denied\"} 2"),
        "{text}"
    );
    assert!(text.contains("tulle_control_plane_certificates_total{result=\"ok\"} 1"), "{text}");
    plane.stop().await;
}

#[tokio::test]
async fn a_bad_request_is_refused_with_its_reason() {
    let plane = ControlPlane::start().await;
    let token = plane.token("shop", "web");
    let channel = plane.connect().await;
    let weak = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/rsa1024.csr.pem"));
    let (_, good) = csr(&[WEB]);
    let mut der =
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let body = base64::prelude::BASE64_STANDARD.encode(der);
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    for (request, reason) in [
        (weak.unwrap(), "RSA key has 1024 bits, at least 2048"),
        (forged, "signature does not match its key"),
        ("hello".into(), "not PEM of type CERTIFICATE REQUEST"),
        (plane.root(), "not PEM of type CERTIFICATE REQUEST"),
        ("x".repeat(70_000), "longer than 64 KiB"),
    ] {
        let refused = create_certificate(channel.clone(), Some(&token), &request, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{reason}");
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    create_certificate(channel, Some(&token), &good, 0).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn other_kinds_of_keys_are_certified_too() {
    let plane = ControlPlane::start().await;
    let token = plane.token("shop", "web");
    let channel = plane.connect().await;
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = csr_with(&key, &[]);
        let chain = create_certificate(channel.clone(), Some(&token), &request, 0).await.unwrap();
        let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(&*parsed.public_key().subject_public_key.data, key.public_key_raw());
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_token_that_proves_nothing_is_refused_with_its_reason() {
    let plane = ControlPlane::start().await;
    let channel = plane.connect().await;
    let (now, ttl, state) = (SystemTime::now(), Duration::from_secs(60), plane.state.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let domain = "cluster.local".parse().unwrap();
    Authority::open(elsewhere.path(), &domain, now).unwrap();
    let foreign = tempfile::tempdir().unwrap();
    Authority::open(foreign.path(), &"other.example".parse().unwrap(), now).unwrap();
    fs::copy(state.join("token.key"), foreign.path().join("token.key")).unwrap();

    let hour_ago = now - Duration::from_secs(3600);
    let expired = tokens::mint(state, "shop", "web", ttl, hour_ago).unwrap();
    let forged = tokens::mint(elsewhere.path(), "shop", "web", ttl, now).unwrap();
    let other_domain = tokens::mint(foreign.path(), "shop", "web", ttl, now).unwrap();
    let good = plane.token("shop", "web");
    let unsigned = {
        let claims = good.split('.').nth(1).unwrap();
        format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#))
    };
    let key = fs::read(state.join("token.key")).unwrap();
    let signed = |claims: serde_json::Value| {
        let key = jsonwebtoken::EncodingKey::from_ec_pem(&key).unwrap();
        jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256), &claims, &key)
            .unwrap()
    };
    let exp = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 60;
    let with = |aud: &str, iss: &str| {
        signed(serde_json::json!({"aud": aud, "iss": iss, "sub": WEB, "iat": 0, "exp": exp, "jti": "1"}))
    };
    let no_audience =
        signed(serde_json::json!({"iss": "tulle", "sub": WEB, "iat": 0, "exp": exp, "jti": "1"}));
    let altered = {
        let mut parts: Vec<_> = good.split('.').map(String::from).collect();
        let claims = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
        parts[1] = BASE64_URL_SAFE_NO_PAD.encode(claims.replace("/sa/web", "/sa/cart"));
        parts.join(".")
    };
    let (_, request) = csr(&[]);
    for (token, reason) in [
        (expired, "the join token expired at "),
        (forged, "was signed by another key: it is forged"),
        (altered, "was signed by another key: it is forged"),
        (unsigned, "the join token "),
        (with("kubernetes", "tulle"), "for another audience than \"tulle-control-plane\""),
        (with("tulle-control-plane", "me"), "another issuer than \"tulle\""),
        (no_audience, "no claim \"aud\""),
        (other_domain, "for trust domain \"other.example\""),
        ("x.y.z".into(), "malformed"),
        ("x".repeat(10_000), "malformed"),
    ] {
        let refused = create_certificate(channel.clone(), Some(&token), &request, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{reason}: {refused:?}");
        assert!(refused.message().contains(reason), "{reason}: {}", refused.message());
        assert!(!refused.message().contains(&token), "a token is never shown");
    }
    let refused = create_certificate(channel.clone(), None, &request, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    create_certificate(channel, Some(&with("tulle-control-plane", "tulle")), &request, 0).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn an_expired_or_foreign_certificate_is_refused_and_a_token_helps() {
    let plane = ControlPlane::start().await;
    let identity = WEB.parse().unwrap();
    let (key, request) = csr(&[]);
    let long_ago = SystemTime::now() - 2 * LEAF_LIFETIME;
    let expired = plane.authority.certify(&identity, &request, None, long_ago).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::open(elsewhere.path(), plane.authority.trust_domain(), SystemTime::now()).unwrap();
    let foreign = other.certify(&identity, &request, None, SystemTime::now()).unwrap();
    for leaf in [expired, foreign] {
        let channel =
            connect(plane.address, &plane.root(), Some((&leaf.chain[0], &key.serialize_pem()))).await;
        // In TLS 1.3 the client is done first, so it may learn of the refusal only with its first request.
        if let Ok(channel) = channel {
            let refused = create_certificate(channel, None, &request, 0).await.unwrap_err();
            assert_ne!(refused.code(), Code::Unauthenticated, "refused in the handshake: {refused:?}");
        }
    }
    let token = plane.token("shop", "web");
    create_certificate(plane.connect().await, Some(&token), &request, 0).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_root_is_rotated_without_anyone_being_cut_off() {
    let plane = ControlPlane::start().await;
    let dir = plane.state.path();
    let old = plane.authority.bundle().borrow().roots[0].id.clone();
    let old_root = plane.root();
    let (token, (key, request)) = (plane.token("shop", "web"), csr(&[]));
    let chain = create_certificate(plane.connect().await, Some(&token), &request, 0).await.unwrap();
    let pem = key.serialize_pem();
    let mine = Some((chain[0].as_str(), pem.as_str()));
    assert!(rotation::switch(dir).unwrap_err().to_string().contains("run `prepare` first"));

    let new = rotation::prepare(dir, SystemTime::now()).unwrap();
    assert_eq!(rotation::prepare(dir, SystemTime::now()).unwrap(), new, "again is the same");
    assert!(plane.authority.reload().unwrap());
    assert!(!plane.authority.reload().unwrap(), "nothing new");
    assert_eq!(plane.authority.bundle().borrow().roots.len(), 2);
    let bundle = plane.root();
    assert!(bundle.contains(&old_root) && bundle.len() > old_root.len());
    let signer = |chain: &[String]| {
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        issuer::root_of(&leaf, &plane.authority.bundle().borrow())
    };
    let channel = connect(plane.address, &old_root, mine).await.unwrap();
    let chain = create_certificate(channel, None, &request, 0).await.unwrap();
    assert_eq!(signer(&chain), Some(old.clone()), "the old root still signs");
    assert_eq!(chain.len(), 3, "both roots are handed out");

    assert_eq!(rotation::switch(dir).unwrap(), new);
    assert!(plane.authority.reload().unwrap());
    // The leaf of the old root still serves to connect, and brings one of the new root.
    let renewed = async || {
        let channel = connect(plane.address, &bundle, mine).await.ok()?;
        create_certificate(channel, None, &request, 0).await.ok()
    };
    let chain = renewed().await.expect("the old leaf is trusted");
    assert_eq!(signer(&chain), Some(new.clone()));

    assert_eq!(rotation::retire(dir).unwrap(), [old]);
    assert!(plane.authority.reload().unwrap());
    assert_eq!(plane.authority.bundle().borrow().roots.len(), 1);
    assert!(!plane.root().contains(&old_root));
    // The endpoint takes the new bundle within moments.
    let mut refused = false;
    for _ in 0..100 {
        refused = renewed().await.is_none();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused, "a leaf of the old root is no longer accepted");
    let (new_leaf, root) = (chain[0].as_str(), plane.root());
    let channel = connect(plane.address, &root, Some((new_leaf, &pem))).await.unwrap();
    create_certificate(channel, None, &request, 0).await.unwrap();
    plane.stop().await;
}

#[test]
fn the_state_folder_is_private_and_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, domain, now) =
        (temp.path().join("a/state"), "cluster.local".parse().unwrap(), SystemTime::now());
    let first = Authority::open(&dir, &domain, now).unwrap();
    let root = first.bundle().borrow().clone();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let key = dir.join("roots").join(&root.roots[0].id).join("key.pem");
    for file in [&key, &dir.join("token.key"), &dir.join("root.pem"), &dir.join("signing")] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    let token = tokens::mint(&dir, "shop", "web", Duration::from_secs(60), now).unwrap();
    drop(first);
    let second = Authority::open(&dir, &domain, now).unwrap();
    assert_eq!(*second.bundle().borrow(), root);
    second.token_key().verify(&token, &domain, now).unwrap();
    drop(second);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Authority::open(&dir, &domain, now).unwrap_err().to_string();
    assert!(error.contains("others may read the private key") && error.contains("0640"), "{error}");
    assert!(error.contains(&format!("chmod 0600 {}", key.display())), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let error = Authority::open(&dir, &"other.example".parse().unwrap(), now).unwrap_err().to_string();
    assert!(error.contains("--trust-domain cluster.local"), "{error}");

    fs::write(&key, "not a key").unwrap();
    let error = Authority::open(&dir, &domain, now).unwrap_err();
    assert!(matches!(&error, CaError::Damaged { path, .. } if *path == key), "{error}");
}

#[test]
fn a_state_folder_that_cant_be_written_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    let dir = file.join("state");
    let error = Authority::open(&dir, &"cluster.local".parse().unwrap(), SystemTime::now()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&dir.display().to_string()) && text.contains("--state"), "{text}");
    let error = tokens::mint(temp.path(), "a", "b", Duration::from_secs(1), SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains("holds no certificate authority"), "{error}");
}

#[tokio::test]
async fn the_endpoint_proves_its_names_and_speaks_tls_1_3_only() {
    let plane = ControlPlane::start().await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(plane.root().as_bytes()).unwrap()).unwrap();
    let attempt = async |name: &'static str, version: &'static rustls::SupportedProtocolVersion| {
        let config =
            rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(plane.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        connector.connect(name.try_into().unwrap(), tcp).await
    };
    for name in ["localhost", "127.0.0.1", "mesh.example", "tulle-control-plane.tulle-system.svc"] {
        let stream = attempt(name, &rustls::version::TLS13).await.unwrap();
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let own = "spiffe://cluster.local/ns/tulle-system/sa/tulle-control-plane";
        assert_eq!(issuer::spiffe_id(&leaf).unwrap().as_str(), own);
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
    let error = attempt("other.example", &rustls::version::TLS13).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let error = attempt("localhost", &rustls::version::TLS12).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    plane.stop().await;
}

#[tokio::test]
async fn what_a_client_sends_instead_of_tls_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let plane = ControlPlane::start().await;
    let mut tcp = tokio::net::TcpStream::connect(plane.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    let mut stream = plane.delta("shop", "web").await;
    stream.subscribe(Kind::Route, &["r"]).await;
    assert_eq!(stream.next_names().await.2, ["r"], "others are served");
    plane.stop().await;
}
