use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::tls::read;
use crate::tls::testing::{Authority, Request};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

fn folder() -> (tempfile::TempDir, Folder) {
    let place = tempfile::tempdir().expect("a folder");
    let folder = Folder::open(&place.path().join("new/certs")).expect("it is made");
    (place, folder)
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(&folder.path).expect("it is there");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_as_it_was_and_only_the_key_is_private() {
    let (_place, folder) = folder();
    let authority = Authority::new("root");
    let leaf = authority.leaf(&Request::workload(WEB));
    folder.write(&leaf, &authority.bundle()).expect("it can be written");

    let (read, bundle) = read(&folder.files()).expect("it can be read");
    assert_eq!(read.chain, leaf.chain);
    assert_eq!(read.key_der(), leaf.key_der());
    assert_eq!(bundle, authority.bundle());
    for (name, mode) in [(CERTIFICATE, 0o644), (KEY, 0o600), (BUNDLE, 0o644)] {
        let metadata = fs::metadata(folder.path.join(name)).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o777 & !0o022, mode & !0o022, "{name}");
    }
    let lines = fs::read_to_string(folder.path.join(CERTIFICATE)).expect("UTF-8");
    assert!(lines.lines().all(|line| line.len() <= 64), "{lines}");
}

#[test]
fn a_replacement_takes_the_place_of_all_files_at_once_and_leaves_no_key_behind() {
    let (_place, folder) = folder();
    let authority = Authority::new("root");
    folder.write(&authority.leaf(&Request::workload(WEB)), &authority.bundle()).expect("it can be written");
    // As of a run that was cut short, and a file that is not ours.
    fs::create_dir(folder.path.join("..12345")).expect("a folder");
    fs::write(folder.path.join("..12345/tls.key"), "old").expect("a file");
    fs::write(folder.path.join("..note"), "mine").expect("a file");
    symlink("nowhere", folder.path.join("..data.new")).expect("a link");

    let before = fs::read_link(folder.path.join(DATA)).expect("a link");
    let leaf = authority.leaf(&Request::workload(WEB));
    folder.write(&leaf, &authority.bundle()).expect("it can be written");
    let after = fs::read_link(folder.path.join(DATA)).expect("a link");
    assert_ne!(before, after);
    let now = after.to_str().expect("UTF-8").to_owned();
    let mut expected =
        [BUNDLE, CERTIFICATE, KEY, ENVOY_BUNDLE, ENVOY_CERTIFICATE, DATA, "..note", &now].map(String::from);
    expected.sort();
    assert_eq!(names(&folder), expected);
    assert_eq!(read(&folder.files()).expect("it can be read").0.chain, leaf.chain);
}

#[test]
fn a_folder_that_can_not_be_made_is_named() {
    let place = tempfile::NamedTempFile::new().expect("a file");
    let path = place.path().join("certs");
    let error = Folder::open(&path).err().expect("a file is no folder").to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
}
