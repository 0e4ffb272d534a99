//! What cert-manager and others write, whole and broken.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn params(name: &str, ca: bool, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() - DAY + life).into();
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    params
}

fn root(name: &str) -> Signer {
    let (key, params) = (KeyPair::generate().unwrap(), params(name, true, 30 * DAY));
    let pem = params.self_signed(&key).unwrap().pem();
    Signer { issuer: Issuer::new(params, key), pem }
}

fn below(above: &Signer, key: KeyPair, ca: bool, life: Duration) -> Signer {
    let params = params("intermediate", ca, life);
    let pem = params.signed_by(&key, &above.issuer).unwrap().pem();
    Signer { issuer: Issuer::new(params, key), pem }
}

fn files(chain: &str, key: &str, roots: &str) -> BTreeMap<String, Vec<u8>> {
    let files = [(CHAIN, chain), (KEY, key), (ROOTS, roots)];
    files.into_iter().map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).collect()
}

fn domain() -> TrustDomain {
    "test.example".parse().unwrap()
}

#[test]
fn an_intermediate_signs_what_peers_believe() {
    let (first, second) = (root("first"), root("second"));
    for key in [KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()] {
        let key_pem = key.serialize_pem();
        let upper = below(&first, KeyPair::generate().unwrap(), true, 30 * DAY);
        let lower = below(&upper, key, true, DAY + Duration::from_secs(3600));
        let files =
            files(&(lower.pem + &upper.pem), &key_pem, &(second.pem.clone() + &first.pem + &first.pem));
        let roots = read(&files, &domain(), SystemTime::now()).unwrap();
        assert_eq!((roots.bundle.roots.len(), roots.intermediates.len()), (2, 2));
        let identity = SpiffeId::workload(&domain(), "shop", "cart").unwrap();
        let leaf = KeyPair::generate().unwrap();
        let leaf = issuer::sign(&roots, &identity, &[], &leaf, DAY, SystemTime::now()).unwrap();
        assert_eq!((leaf.chain.len(), leaf.intermediates.len()), (5, 2));
        assert!(leaf.not_after < SystemTime::now() + Duration::from_secs(3601), "not beyond what signs it");
    }
}

#[test]
fn a_root_may_be_given_with_its_key() {
    let key = KeyPair::generate().unwrap();
    let (text, params) = (key.serialize_pem(), params("own", true, 30 * DAY));
    let pem = params.self_signed(&key).unwrap().pem();
    let roots = read(&files(&pem, &text, &pem), &domain(), SystemTime::now()).unwrap();
    assert!(roots.intermediates.is_empty());
}

#[test]
fn what_could_not_sign_is_named_and_never_taken() {
    let (one, other) = (root("one"), root("other"));
    let key = KeyPair::generate().unwrap();
    let text = key.serialize_pem();
    let good = below(&one, key, true, 30 * DAY);
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    let leaf_key = KeyPair::generate().unwrap();
    let leaf_text = leaf_key.serialize_pem();
    let leaf = below(&one, leaf_key, false, 30 * DAY);
    let old_key = KeyPair::generate().unwrap();
    let old_text = old_key.serialize_pem();
    let old = below(&one, old_key, true, Duration::from_secs(3600));
    for (files, reason) in [
        (files(&good.pem, &foreign, &one.pem), "is not believed"),
        (files(&good.pem, &text, &other.pem), "is not believed"),
        (files(&old.pem, &old_text, &one.pem), "is not believed"),
        (files(&leaf.pem, &leaf_text, &one.pem), "isCA: true"),
        (files(&good.pem, &text, ""), "ca.crt holds no certificate; put every root there"),
        (files("", &text, &one.pem), "tls.crt holds no certificate"),
        (files("nonsense", &text, &one.pem), "tls.crt holds no certificate"),
        (files(&good.pem, "nonsense", &one.pem), "tls.key holds no private key"),
        (files(&good.pem, &text, &text), "ca.crt holds no certificate"),
        (BTreeMap::new(), "it has no tls.crt"),
    ] {
        let error = read(&files, &domain(), SystemTime::now()).err().expect(reason);
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        assert!(!error.contains("PRIVATE"), "{error}");
    }
}
