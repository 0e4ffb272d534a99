//! From a path to the routes of a virtual host that may match it, in their order.
//!
//! Exact paths and prefixes lie in one sorted list of texts. The greatest text that is not above a path either is the
//! path, or shares its longest indexed prefix with it: one binary search and a walk up the prefixes of that text find
//! it. Regular expressions and paths without regard to case can't be sorted so; they are tried for every path.

use std::collections::BTreeMap;

use crate::model::{PathMatch, RouteMatch};

use super::matcher::is_unconditional;

#[derive(Debug)]
pub(super) struct PathIndex {
    /// In byte order of their texts.
    anchors: Vec<Anchor>,
    /// Routes that are tried for every path, ascending.
    rest: Vec<u32>,
}

#[derive(Debug)]
struct Anchor {
    text: Box<str>,
    /// The longest other text that this one starts with.
    parent: Option<usize>,
    /// Routes that match the path `text`, ascending.
    at: Vec<u32>,
    /// Routes that match any path that starts with `text`, ascending.
    below: Vec<u32>,
}

impl PathIndex {
    /// Indexes routes under their numbers within `rules`.
    pub(super) fn build<'r>(rules: impl Iterator<Item = &'r RouteMatch> + Clone) -> Self {
        let mut texts: BTreeMap<String, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
        let mut rest = Vec::new();
        for (number, rule) in (0u32..).zip(rules.clone()) {
            match &rule.path {
                PathMatch::Regex(_) => rest.push(number),
                _ if !rule.case_sensitive => rest.push(number),
                PathMatch::Exact(path) => texts.entry(path.clone()).or_default().0.push(number),
                PathMatch::Segments(path) => {
                    texts.entry(path.clone()).or_default().0.push(number);
                    texts.entry(format!("{path}/")).or_default().1.push(number);
                }
                PathMatch::Prefix(path) => texts.entry(path.clone()).or_default().1.push(number),
            }
        }
        let unconditional: Vec<bool> = rules.map(is_unconditional).collect();
        // Nothing behind a route that takes every request of a path can be reached on that path.
        let reachable = |mut routes: Vec<u32>| {
            routes.sort_unstable();
            if let Some(last) = routes.iter().position(|number| unconditional[*number as usize]) {
                routes.truncate(last + 1);
            }
            routes
        };
        let mut anchors: Vec<Anchor> = Vec::with_capacity(texts.len());
        for (text, (mut at, mut below)) in texts {
            let parent = ancestor(&anchors, anchors.len().checked_sub(1), &text);
            if let Some(parent) = parent {
                below.extend(&anchors[parent].below);
            }
            at.extend(&below);
            let (at, below) = (reachable(at), reachable(below));
            anchors.push(Anchor { text: text.into(), parent, at, below });
        }
        Self { anchors, rest }
    }

    /// The routes to try, ascending.
    pub(super) fn candidates(&self, path: &str) -> Candidates<'_> {
        let above = self.anchors.partition_point(|anchor| *anchor.text <= *path);
        let anchor = ancestor(&self.anchors, above.checked_sub(1), path).map(|found| &self.anchors[found]);
        let path_known = match anchor {
            Some(anchor) if *anchor.text == *path => anchor.at.as_slice(),
            Some(anchor) => anchor.below.as_slice(),
            None => &[],
        };
        Candidates { path_known, rest: &self.rest }
    }
}

/// The first of `from`, its parent, its parent's parent and so on that `path` starts with.
fn ancestor(anchors: &[Anchor], mut from: Option<usize>, path: &str) -> Option<usize> {
    while let Some(anchor) = from {
        if path.starts_with(&*anchors[anchor].text) {
            break;
        }
        from = anchors[anchor].parent;
    }
    from
}

/// A route that may match.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// Its number within the virtual host.
    pub(super) number: u32,
    /// Whether its condition on the path is known to hold.
    pub(super) path_known: bool,
}

/// Two ascending lists, merged on the way.
pub(super) struct Candidates<'t> {
    path_known: &'t [u32],
    rest: &'t [u32],
}

impl Iterator for Candidates<'_> {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        let path_known = match (self.path_known.first(), self.rest.first()) {
            (Some(known), Some(other)) => known < other,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return None,
        };
        let list = if path_known { &mut self.path_known } else { &mut self.rest };
        let (number, tail) = list.split_first()?;
        *list = tail;
        Some(Candidate { number: *number, path_known })
    }
}
