//! Manifests in a folder.
//!
//! In: `*.yaml`, `*.yml` and `*.json` files below a folder, with one or more documents each, `kind: List` too. Out:
//! [`Loaded`]: the objects of the kinds that Tulle reads, and the problems of those that can't be used.
//!
//! A broken object keeps its last good version in force; one that was never good is left out; one whose file or
//! document is gone is gone. While a document can't be parsed at all, nobody can tell which objects it means, so all
//! earlier objects of its file that are not found elsewhere in it stay. Other objects always apply.

mod decode;
mod documents;
pub mod once;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Kind, KindVisitor, Loaded, ObjectRef, Objects, Problem, Severity, object_ref};
use documents::Parsed;

/// A folder of manifests, and what was last read from it.
pub struct ManifestsSource {
    folder: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    objects: Objects,
}

/// What a file held when it was last read.
struct FileState {
    text: Arc<str>,
    objects: Objects,
    problems: Vec<Problem>,
}

/// Files above this size, in bytes, are not read.
pub const MAX_FILE: u64 = 8 << 20;
/// A folder may have this many files at the most.
pub const MAX_FILES: usize = 20_000;

impl ManifestsSource {
    /// Reads a folder for the first time.
    ///
    /// # Errors
    /// When the folder itself can't be read. What is wrong with files in it is in [`Loaded::problems`].
    pub fn load(folder: impl Into<PathBuf>) -> Result<(Self, Loaded), SourceError> {
        let folder = folder.into();
        std::fs::read_dir(&folder).map_err(|error| SourceError { folder: folder.clone(), error })?;
        let mut source = Self { folder, files: BTreeMap::new(), objects: Objects::default() };
        let loaded = source.reload();
        Ok((source, loaded))
    }

    /// Reads the folder again. Objects that did not change keep their `Arc`.
    pub fn reload(&mut self) -> Loaded {
        let mut problems = Vec::new();
        let mut files = BTreeMap::new();
        for path in documents::list(&self.folder, &mut problems) {
            let old = self.files.remove(&path);
            let state = match documents::read(&path) {
                Ok(text) => match old {
                    Some(old) if old.text == text => old,
                    old => self.parse(&path, text, old.as_ref()),
                },
                Err(problem) => {
                    let objects = old.map(|old| old.objects).unwrap_or_default();
                    // The text is forgotten, so that the file is parsed once it can be read again.
                    FileState { text: "".into(), objects, problems: vec![*problem] }
                }
            };
            files.insert(path, state);
        }
        self.files = files;

        let mut objects = Objects::default();
        for state in self.files.values() {
            problems.extend(state.problems.iter().cloned());
            Objects::visit_kinds(&mut Merge {
                into: &mut objects,
                from: &state.objects,
                problems: &mut problems,
            });
        }
        problems.sort();
        self.objects = objects.clone();
        Loaded { objects, problems }
    }

    fn parse(&self, path: &Path, text: Arc<str>, old: Option<&FileState>) -> FileState {
        let Parsed { mut objects, failed, unreadable, problems } = documents::parse(path, &text);
        let nothing = Objects::default();
        let of_file = old.map_or(&nothing, |old| &old.objects);
        Objects::visit_kinds(&mut Reuse { objects: &mut objects, earlier: &self.objects });
        Objects::visit_kinds(&mut Keep {
            objects: &mut objects,
            earlier: &self.objects,
            which: Some(&failed),
        });
        if unreadable {
            Objects::visit_kinds(&mut Keep { objects: &mut objects, earlier: of_file, which: None });
        }
        FileState { text, objects, problems }
    }
}

/// Takes a file's objects into the whole; of two with one name, the first stays.
struct Merge<'a> {
    into: &'a mut Objects,
    from: &'a Objects,
    problems: &'a mut Vec<Problem>,
}

impl KindVisitor for Merge<'_> {
    fn visit<T: Kind>(&mut self) {
        for (key, object) in T::table(self.from) {
            match T::table(self.into).get(key) {
                None => {
                    T::table_mut(self.into).insert(key.clone(), object.clone());
                }
                Some(first) => {
                    self.problems.extend(documents::duplicate(
                        object_ref::<T>(key),
                        first.place.as_deref(),
                        object.place.as_deref(),
                    ));
                }
            }
        }
    }
}

/// Puts the earlier `Arc` in the place of an equal object.
struct Reuse<'a> {
    objects: &'a mut Objects,
    earlier: &'a Objects,
}

impl KindVisitor for Reuse<'_> {
    fn visit<T: Kind>(&mut self) {
        for (key, object) in T::table_mut(self.objects) {
            if let Some(earlier) = T::table(self.earlier).get(key)
                && *earlier.value == *object.value
            {
                object.value = earlier.value.clone();
            }
        }
    }
}

/// Keeps earlier objects in force where there is no good one: those of `which`, or all.
struct Keep<'a> {
    objects: &'a mut Objects,
    earlier: &'a Objects,
    which: Option<&'a BTreeSet<ObjectRef>>,
}

impl KindVisitor for Keep<'_> {
    fn visit<T: Kind>(&mut self) {
        for (key, object) in T::table(self.earlier) {
            if self.which.is_none_or(|which| which.contains(&object_ref::<T>(key))) {
                T::table_mut(self.objects).entry(key.clone()).or_insert_with(|| object.clone());
            }
        }
    }
}

/// The folder (or a single file that was named) can't be read: the operator's fault, or the file system's.
#[derive(Debug)]
pub struct SourceError {
    folder: PathBuf,
    error: std::io::Error,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't read manifests from {}: {}", self.folder.display(), self.error)
    }
}

impl std::error::Error for SourceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

fn file_problem(path: &Path, line: Option<u32>, reason: String, fix: &str) -> Problem {
    Problem { file: Some(path.to_owned()), line, ..Problem::new(Severity::Error, reason, fix) }
}
