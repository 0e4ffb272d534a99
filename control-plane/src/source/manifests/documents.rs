//! Files, their documents, and the objects in them.
//!
//! In: a folder, or a file's text. Out: the files below the folder; the objects of a file, and which of them are broken.
//! One broken document never hides another: a line that starts with `---` always ends a document, whatever stands before
//! it, so documents are told apart before they are parsed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tulle_mesh::yaml::{Content, Node, PARSE_STACK};

use super::{MAX_FILE, MAX_FILES, decode, file_problem};
use crate::kinds::GROUP;
use crate::source::{Kind, KindVisitor, Object, ObjectRef, Objects, Place, Problem, Severity};

/// The objects of a file.
#[derive(Default)]
pub(super) struct Parsed {
    /// The good ones.
    pub(super) objects: Objects,
    /// Those that are there, but broken.
    pub(super) failed: BTreeSet<ObjectRef>,
    /// A part of the file could not even be told what it is.
    pub(super) unreadable: bool,
    pub(super) problems: Vec<Problem>,
}

/// The manifests below a folder, in order. Hidden entries are skipped (a mounted ConfigMap keeps its versions in
/// those), links are followed.
pub(super) fn list(folder: &Path, problems: &mut Vec<Problem>) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        // A link may lead back up.
        let unseen = folder.canonicalize().is_ok_and(|real| seen.insert(real));
        if !unseen {
            continue;
        }
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                problems.push(file_problem(
                    &folder,
                    None,
                    format!("the folder can't be read: {error}"),
                    "make it readable",
                ));
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if hidden {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if is_manifest(&path) && found.len() < MAX_FILES {
                found.insert(path);
            } else if is_manifest(&path) {
                problems.push(file_problem(
                    &path,
                    None,
                    format!("there are more than {MAX_FILES} files"),
                    "put several objects into a file",
                ));
                return found;
            }
        }
    }
    found
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<Arc<str>, Box<Problem>> {
    let size = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or_default();
    if size > MAX_FILE {
        let reason = format!("the file has {size} bytes, more than the {MAX_FILE} that are read");
        return Err(Box::new(file_problem(path, None, reason, "split it")));
    }
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(error) => {
                let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                Err(Box::new(file_problem(
                    path,
                    Some(line),
                    "the file is not UTF-8".into(),
                    "save it as UTF-8",
                )))
            }
        },
        Err(error) => Err(Box::new(file_problem(
            path,
            None,
            format!("the file can't be read: {error}"),
            "make it readable",
        ))),
    }
}

/// Parses a file's text, on a thread with a stack that is deep enough for any document that is let in.
pub(super) fn parse(path: &Path, text: &str) -> Parsed {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("manifest".into()).stack_size(PARSE_STACK);
        let parsed = thread.spawn_scoped(scope, || parse_documents(path, text)).map(|parsing| parsing.join());
        if let Ok(Ok(parsed)) = parsed {
            return parsed;
        }
        let problem = file_problem(path, None, "the file could not be parsed".into(), "see the log");
        Parsed { unreadable: true, problems: vec![problem], ..Parsed::default() }
    })
}

fn parse_documents(path: &Path, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (first_line, text) in split(text) {
        match Node::parse(text, first_line) {
            Ok(Some(node)) => parsed.add(path, node),
            Ok(None) => {}
            Err(error) => {
                parsed.unreadable = true;
                let mut problem = file_problem(
                    path,
                    error.line.or(Some(first_line)),
                    format!("not valid YAML: {}", error.reason),
                    "correct the syntax; what this file held before stays in force",
                );
                problem.column = error.column;
                parsed.problems.push(problem);
            }
        }
    }
    parsed
}

/// The documents of a text, each with its first line.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (line, content) in (1u32..).zip(text.split_inclusive('\n')) {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            documents.push((start_line, &text[start..at]));
            (start, start_line) = (at, line);
        }
        at += content.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

impl Parsed {
    fn add(&mut self, path: &Path, node: Node) {
        let Content::Map(_) = node.content else {
            return self.reject(path, &node, "a document must be an object with apiVersion and kind");
        };
        let (Some(version), Some(kind)) = (node.text("apiVersion"), node.text("kind")) else {
            return self.reject(path, &node, "apiVersion or kind is missing");
        };
        if kind.ends_with("List")
            && node.field("items").is_some()
            && node.field("metadata").is_none_or(|meta| meta.field("name").is_none())
        {
            let items = node.field("items").cloned().map(Node::entries).unwrap_or_default();
            for item in items {
                self.add(path, item);
            }
            return;
        }
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let mut read =
            Read { path, node: &node, group, version, kind, known: Vec::new(), found: false, into: self };
        Objects::visit_kinds(&mut read);
        let (found, known) = (read.found, read.known);
        if !found {
            self.unknown_kind(path, &node, group, version, kind, &known);
        }
    }

    /// Reports an object whose group is one that Tulle reads, but not its kind or version; others are not ours to judge.
    fn unknown_kind(
        &mut self,
        path: &Path,
        node: &Node,
        group: &str,
        version: &str,
        kind: &str,
        known: &[String],
    ) {
        let versions: Vec<&String> =
            known.iter().filter(|known| known.ends_with(&format!(" {kind}"))).collect();
        if group != GROUP && versions.is_empty() {
            tracing::debug!(file = %path.display(), line = node.line, group, version, kind, "not a kind that Tulle reads");
            return;
        }
        let mut problem = file_problem(
            path,
            Some(node.line),
            format!("there is no kind {kind:?} in \"{group}/{version}\""),
            "",
        );
        let names: Vec<String> = known
            .iter()
            .filter_map(|known| known.rsplit_once(' '))
            .map(|(_, kind)| kind.to_owned())
            .collect();
        problem.fix = match (versions.first(), crate::source::read::closest(kind, &names)) {
            (Some(known), _) => format!("write apiVersion: {}", known.trim_end_matches(kind).trim_end()),
            (None, Some(meant)) => format!("did you mean {meant:?}?"),
            (None, None) => format!("use one of: {}", names.join(", ")),
        };
        problem.field = "kind".into();
        self.unreadable = true;
        self.problems.push(problem);
    }

    fn reject(&mut self, path: &Path, node: &Node, reason: &str) {
        self.unreadable = true;
        self.problems.push(file_problem(path, Some(node.line), reason.into(), "write a Kubernetes object"));
    }
}

/// Reads a node as the kind that it says it is.
struct Read<'a> {
    path: &'a Path,
    node: &'a Node,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    /// `<group>/<version> <kind>` of the kinds of this group.
    known: Vec<String>,
    found: bool,
    into: &'a mut Parsed,
}

impl KindVisitor for Read<'_> {
    fn visit<T: Kind>(&mut self) {
        if T::GROUP != self.group {
            return;
        }
        let slash = if T::GROUP.is_empty() { "" } else { "/" };
        self.known.push(format!("{}{slash}{} {}", T::GROUP, T::VERSIONS[0], T::KIND));
        if T::KIND != self.kind || !T::VERSIONS.contains(&self.version) {
            return;
        }
        self.found = true;
        let (name, object, problems) = decode::decode::<T>(self.path, self.node);
        self.into.problems.extend(problems);
        match object {
            Some(object) => self.keep(name, object),
            None => {
                self.into.failed.insert(name);
            }
        }
    }
}

impl Read<'_> {
    fn keep<T: Kind>(&mut self, name: ObjectRef, object: Object<T>) {
        let second = object.place.clone();
        if let Some(first) = self.into.objects.insert(object) {
            self.into.problems.extend(duplicate(name, first.place.as_deref(), second.as_deref()));
            self.into.objects.insert(first);
        }
    }
}

/// Reports that an object is there twice.
pub(super) fn duplicate(object: ObjectRef, first: Option<&Place>, second: Option<&Place>) -> Option<Problem> {
    let (first, second) = (first?, second?);
    Some(Problem {
        file: Some(second.file.clone()),
        line: Some(second.line),
        object: Some(object),
        field: "metadata.name".into(),
        ..Problem::new(
            Severity::Error,
            format!(
                "the object is already there, in {}:{}, which stays in force",
                first.file.display(),
                first.line
            ),
            "remove one of the two, or rename it",
        )
    })
}
