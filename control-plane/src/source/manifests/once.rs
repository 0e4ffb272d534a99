//! Manifests that are read once, from wherever the user points: what `tulle check` and `tulle explain` look at.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Merge, SourceError, documents};
use crate::source::{Loaded, Objects};

/// Where manifests are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file, whatever its name, or a folder with `*.yaml`, `*.yml` and `*.json` files somewhere below it.
    Path(PathBuf),
    /// A text, such as that of standard input.
    Text {
        /// What problems call it.
        name: PathBuf,
        /// The text.
        text: String,
    },
}

/// Reads manifests. No object has an earlier version here: one that is broken is left out.
///
/// # Errors
/// When one of the paths does not exist or can't be looked at. What is wrong inside is in [`Loaded::problems`].
pub fn load(inputs: &[Input]) -> Result<Loaded, SourceError> {
    let mut loaded = Loaded::default();
    let mut seen = BTreeSet::new();
    for input in inputs {
        match input {
            Input::Text { name, text } => add(name, text, &mut loaded),
            Input::Path(path) => {
                let error = |error| SourceError { folder: path.clone(), error };
                let files = match std::fs::metadata(path).map_err(error)?.is_dir() {
                    true => documents::list(path, &mut loaded.problems),
                    false => BTreeSet::from([path.clone()]),
                };
                for file in files {
                    // A file may be named, and be in a folder that is named too.
                    let real = file.canonicalize().unwrap_or_else(|_| file.clone());
                    if !seen.insert(real) {
                        continue;
                    }
                    match documents::read(&file) {
                        Ok(text) => add(&file, &text, &mut loaded),
                        Err(problem) => loaded.problems.push(*problem),
                    }
                }
            }
        }
    }
    loaded.problems.sort();
    Ok(loaded)
}

fn add(name: &Path, text: &str, loaded: &mut Loaded) {
    let parsed = documents::parse(name, text);
    loaded.problems.extend(parsed.problems);
    let (into, problems) = (&mut loaded.objects, &mut loaded.problems);
    Objects::visit_kinds(&mut Merge { into, from: &parsed.objects, problems });
}
