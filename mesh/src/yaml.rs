//! A YAML document as a tree in which each value knows its line.
//!
//! In: the text of one document (JSON is YAML too). Out: a tree, and positions of fields by path. Anchors are bounded,
//! so that a small text can't become a huge tree.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;
/// A value and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// The value.
    pub content: Content,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Neither a list nor a map.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// A map, as it is written.
    Map(Vec<(MapKey, Node)>),
}

/// A field's name and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct MapKey {
    /// The name.
    pub name: String,
    /// Its line, from 1.
    pub line: u32,
    /// Its column, from 1.
    pub column: u32,
}

/// One step from a value to a value in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To a field of a map.
    Field(String),
    /// To an entry of a list.
    Index(usize),
}

/// Prints a path as `spec.rules[0].matches`.
pub fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.extend([".", name]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Reads what [`path_text`] prints.
pub fn parse_path(path: &str) -> Vec<Step> {
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_or_else(|_| Step::Field(part.into()), Step::Index)).collect()
}

/// How deeply values may be nested. A CustomResourceDefinition may come near 60.
const MAX_DEPTH: usize = 100;
/// The stack, in bytes, with which [`Node::parse`] must run: serde's recursion takes up to 32 KiB a level unoptimized.
pub const PARSE_STACK: usize = 16 << 20;

/// A text that is not YAML.
#[derive(Debug)]
pub struct SyntaxError {
    /// What is wrong, in one line.
    pub reason: String,
    /// The line, from 1, where it is known.
    pub line: Option<u32>,
    /// The column, from 1, where it is known.
    pub column: Option<u32>,
}

impl Node {
    /// Parses one document; `None` for one without content. `first_line` is the line in the file on which `text`
    /// starts. To be called with a stack of [`PARSE_STACK`].
    ///
    /// # Errors
    /// When it is not YAML, has a field twice, or is larger or deeper than anybody writes by hand.
    pub fn parse(text: &str, first_line: u32) -> Result<Option<Self>, SyntaxError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 200_000,
                max_nodes: 100_000,
                max_aliases: 1_000,
                max_anchors: 1_000,
                max_depth: MAX_DEPTH,
                max_documents: 1,
            },
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
            strict_booleans: true,
            with_snippet: false,
        };
        match serde_saphyr::from_str_with_options::<Option<Self>>(text, options) {
            Ok(node) => Ok(node
                .filter(|node| node.content != Content::Scalar(Value::Null))
                .map(|node| node.shifted(first_line.saturating_sub(1)))),
            Err(error) => {
                let at = error.location();
                let line = at.map(|at| narrow(at.line()).saturating_add(first_line.saturating_sub(1)));
                let reason = error.without_snippet().to_string();
                let reason = reason.lines().next().unwrap_or_default().to_owned();
                Err(SyntaxError { reason, line, column: at.map(|at| narrow(at.column())) })
            }
        }
    }

    /// The field of a map.
    pub fn field(&self, name: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(fields) => fields.iter().find(|(key, _)| key.name == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a field of a map.
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.field(name)?.content {
            Content::Scalar(value) => value.as_str(),
            _ => None,
        }
    }

    /// The entries of a list.
    pub fn entries(self) -> Vec<Self> {
        match self.content {
            Content::List(entries) => entries,
            _ => Vec::new(),
        }
    }

    /// The same without positions.
    pub fn json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(entries) => Value::Array(entries.iter().map(Self::json).collect()),
            Content::Map(fields) => {
                Value::Object(fields.iter().map(|(key, value)| (key.name.clone(), value.json())).collect())
            }
        }
    }

    /// Line and column of the value at `path`, or of the nearest around it: of its key, where it has one.
    pub fn position(&self, path: &[Step]) -> (u32, u32) {
        let (mut node, mut position) = (self, (self.line, self.column));
        for step in path {
            match (step, &node.content) {
                (Step::Field(name), Content::Map(fields)) => {
                    let Some((key, value)) = fields.iter().find(|(key, _)| key.name == *name) else { break };
                    (node, position) = (value, (key.line, key.column));
                }
                (Step::Index(index), Content::List(entries)) => {
                    let Some(entry) = entries.get(*index) else { break };
                    (node, position) = (entry, (entry.line, entry.column));
                }
                _ => break,
            }
        }
        position
    }

    /// The line of each field, by path.
    pub fn lines(&self) -> BTreeMap<Box<str>, u32> {
        let mut lines = BTreeMap::new();
        self.collect_lines(&mut String::new(), &mut lines);
        lines
    }

    fn collect_lines(&self, path: &mut String, lines: &mut BTreeMap<Box<str>, u32>) {
        let length = path.len();
        match &self.content {
            Content::Scalar(_) => {}
            Content::List(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    lines.insert(path.as_str().into(), entry.line);
                    entry.collect_lines(path, lines);
                    path.truncate(length);
                }
            }
            Content::Map(fields) => {
                for (key, value) in fields {
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(&key.name);
                    lines.insert(path.as_str().into(), key.line);
                    value.collect_lines(path, lines);
                    path.truncate(length);
                }
            }
        }
    }

    fn shifted(mut self, by: u32) -> Self {
        self.line = self.line.saturating_add(by);
        match &mut self.content {
            Content::Scalar(_) => {}
            Content::List(entries) => {
                for entry in entries {
                    *entry = std::mem::replace(entry, Self::null()).shifted(by);
                }
            }
            Content::Map(fields) => {
                for (key, value) in fields {
                    key.line = key.line.saturating_add(by);
                    *value = std::mem::replace(value, Self::null()).shifted(by);
                }
            }
        }
        self
    }

    fn null() -> Self {
        Self { line: 0, column: 0, content: Content::Scalar(Value::Null) }
    }
}

fn narrow(position: u64) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self {
            line: narrow(spanned.referenced.line()),
            column: narrow(spanned.referenced.column()),
            content: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value)
            .map(|number| Content::Scalar(Value::Number(number)))
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            list.push(entry);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            if key.value.is_empty() {
                return Err(A::Error::custom("a field has an empty name"));
            }
            let at = key.referenced;
            let name = MapKey { name: key.value, line: narrow(at.line()), column: narrow(at.column()) };
            map.push((name, entries.next_value()?));
        }
        Ok(Content::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_know_their_lines() {
        let text = "a:\n  b: 1\n  c:\n  - d: x\n  - d: y\n    e: {f: true}\n";
        let node = Node::parse(text, 10).expect("YAML").expect("content");
        let at = |path: &[Step]| node.position(path).0;
        let field = |name: &str| Step::Field(name.into());
        assert_eq!(at(&[field("a")]), 10);
        assert_eq!(at(&[field("a"), field("b")]), 11);
        assert_eq!(at(&[field("a"), field("c"), Step::Index(1), field("e"), field("f")]), 15);
        assert_eq!(at(&[field("a"), field("c"), Step::Index(1), field("missing")]), 14);
        assert_eq!(node.lines().get("a.c[1].e.f"), Some(&15));
        assert_eq!(
            node.json(),
            serde_json::json!({"a": {"b": 1, "c": [{"d": "x"}, {"d": "y", "e": {"f": true}}]}})
        );
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = Node::parse("a: 1\nb: [1, 2\nc: 3\n", 5).expect_err("an unclosed list");
        assert!(error.line.is_some_and(|line| (6..=8).contains(&line)), "{error:?}");
    }

    #[test]
    fn texts_that_grow_without_bound_are_refused() {
        let parse = |text: &str| {
            let thread = std::thread::Builder::new().stack_size(PARSE_STACK);
            std::thread::scope(|scope| {
                let parsing = thread.spawn_scoped(scope, || Node::parse(text, 1));
                parsing.expect("a thread").join().expect("no panic")
            })
        };
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (name, of) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"])
        {
            bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(", ")));
        }
        assert!(parse(&bomb).is_err());
        let deep = |levels| format!("a: {}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&deep(90)).is_ok());
        assert!(parse(&deep(200)).is_err());
        assert!(parse(&deep(100_000)).is_err());
        assert!(parse("a: 1\na: 2\n").is_err(), "a field given twice");
    }

    #[test]
    fn a_document_without_content_is_none() {
        for text in ["", "\n", "# only a comment\n", "---\n", "null\n"] {
            assert!(Node::parse(text, 1).expect("YAML").is_none(), "{text:?}");
        }
    }
}
