//! Every field of Envoy's API that may stand in a resource of ours, tried: it works, it is refused, or it is harmless.
//!
//! In: resources that hold all that is supported (`fields/resources.json`), and Envoy's descriptors, by `tests/python/fields.py`.
//! Out: the table `mesh/FIELDS.md`, which fails the test when it is not what comes out; `UPDATE=1` writes it. A field that
//! neither changes what the sidecar does nor is refused has to be named in `fields/harmless.txt`, with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tulle_mesh::xds::Resource;
use tulle_tests::{LIMIT, python};

const RESOURCES: &str = include_str!("fields/resources.json");
const HARMLESS: &str = include_str!("fields/harmless.txt");
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mesh/FIELDS.md");

/// What a field comes to, the weakest first: one that works somewhere works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ignored,
    Refused,
    Supported,
}

#[tokio::test]
async fn a_field_works_or_is_refused_or_is_known_to_be_harmless() {
    let verdicts = verdicts(&tried().await);
    let harmless: BTreeMap<&str, &str> = HARMLESS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line:?} gives no reason")))
        .collect();
    let ignored: BTreeSet<&str> = verdicts
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::Ignored)
        .map(|(field, _)| field.as_str())
        .collect();
    let unnamed: Vec<_> = ignored.iter().filter(|field| !harmless.contains_key(**field)).collect();
    assert!(unnamed.is_empty(), "{} fields are ignored in silence:\n{unnamed:#?}", unnamed.len());
    let stale: Vec<_> = harmless.keys().filter(|field| !ignored.contains(**field)).collect();
    assert!(stale.is_empty(), "not ignored, but named as harmless: {stale:#?}");

    let table = table(&verdicts, &harmless);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(TABLE, &table).expect("the table can be written");
    }
    let committed = std::fs::read_to_string(Path::new(TABLE)).unwrap_or_default();
    assert!(committed == table, "mesh/FIELDS.md is not what the code does: run with UPDATE=1");
}

/// What `fields.py` says, a line for each try.
async fn tried() -> Vec<Value> {
    let mut command = python("fields.py");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("python runs; tests/setup installs it");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(RESOURCES.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = tokio::time::timeout(LIMIT * 3, child.wait_with_output()).await.expect("it ends");
    let output = output.expect("it runs");
    assert!(output.status.success(), "fields.py failed");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn verdicts(tried: &[Value]) -> BTreeMap<String, Verdict> {
    let decode = |line: &Value, value: &str| {
        let bytes = BASE64_STANDARD.decode(value).expect("base64");
        Resource::decode(text(line, "type"), &bytes)
    };
    let whole = tried.iter().filter(|line| line["message"].is_null());
    let errors: Vec<_> = whole.filter_map(|line| decode(line, text(line, "value")).err()).collect();
    assert!(errors.is_empty(), "not even as they are: {errors:#?}");
    let mut base = None;
    let mut verdicts = BTreeMap::new();
    for line in tried {
        let decoded = decode(line, text(line, "value"));
        if line["message"].is_null() {
            base = decoded.ok();
            continue;
        }
        let before = match line["without"].as_str() {
            Some(without) => decode(line, without).ok(),
            None => base.clone(),
        };
        let verdict = match decoded {
            Ok(resource) if Some(&resource) == before.as_ref() => Verdict::Ignored,
            Err(_) if line["cleared"] == false => Verdict::Refused,
            // It is needed, or makes a difference.
            _ => Verdict::Supported,
        };
        let field = format!("{}.{}", text(line, "message"), text(line, "field"));
        let known = verdicts.entry(field).or_insert(verdict);
        *known = verdict.max(*known);
    }
    verdicts
}

fn table(verdicts: &BTreeMap<String, Verdict>, harmless: &BTreeMap<&str, &str>) -> String {
    let mut text = String::from(
        "# What of Envoy's v3 API a sidecar understands\n\n\
         Each field of each message, tried with a value other than its default: it *works*, a resource that sets it is \
         *refused* and the error names it, or it is *ignored* because that is harmless, for the reason given. Written by \
         `UPDATE=1 cargo test -p tulle-tests --test xds fields`.\n",
    );
    let mut message = "";
    for (name, verdict) in verdicts {
        let (of, field) = name.rsplit_once('.').expect("a message and a field");
        if of != message {
            write!(text, "\n## {of}\n\n| field | |\n|---|---|\n").expect("a string grows");
            message = of;
        }
        let what = match verdict {
            Verdict::Supported => "works".to_owned(),
            Verdict::Refused => "refused".to_owned(),
            Verdict::Ignored => format!("ignored: {}", harmless[name.as_str()]),
        };
        writeln!(text, "| `{field}` | {what} |").expect("a string grows");
    }
    text
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().expect("a text")
}
