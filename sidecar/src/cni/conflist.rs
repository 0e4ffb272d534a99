//! The edit of one file of network configuration: our entry at the end of its plugins, or none.
//!
//! In: the text of a conflist. Out: the changed text, or `None` where nothing needs to change. All that others wrote stays,
//! in its order.

use std::fmt;

use serde_json::{Map, Value, json};

use super::NAME;
use super::call::VERSIONS;
use super::pod::CAPABILITY;

/// The text with exactly one entry of ours.
///
/// # Errors
/// When this is no list of plugins that ours can follow.
pub(super) fn with_entry(text: &str) -> Result<Option<String>, ConflistError> {
    let mut list = parse(text)?;
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    if !VERSIONS.contains(&version) {
        return Err(ConflistError::Version(version.to_owned()));
    }
    let plugins = plugins(&mut list)?;
    if plugins.is_empty() {
        return Err(ConflistError::NoPlugins);
    }
    let entry = json!({ "type": NAME, "capabilities": { CAPABILITY: true } });
    let ours = |plugin: &&Value| is_ours(plugin);
    // Others may have followed ours: what is right stays where it is.
    if plugins.iter().filter(ours).count() == 1 && plugins[0] != entry && plugins.contains(&entry) {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err(ConflistError::NoPlugins);
    }
    plugins.push(entry);
    Ok(Some(print(list)))
}

/// The text without an entry of ours.
///
/// # Errors
/// When this is no list of plugins.
pub(super) fn without_entry(text: &str) -> Result<Option<String>, ConflistError> {
    let mut list = parse(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    Ok((plugins.len() < before).then(|| print(list)))
}

fn parse(text: &str) -> Result<Map<String, Value>, ConflistError> {
    serde_json::from_str(text).map_err(ConflistError::Json)
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, ConflistError> {
    list.get_mut("plugins").and_then(Value::as_array_mut).ok_or(ConflistError::NoPlugins)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(NAME)
}

fn print(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

/// Why a file can't hold our entry.
#[derive(Debug)]
pub(super) enum ConflistError {
    /// It is not JSON.
    Json(serde_json::Error),
    /// It is of a version that the plugin does not speak: with our entry no pod would start.
    Version(String),
    /// It lists no plugin that makes a network.
    NoPlugins,
}

impl fmt::Display for ConflistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "not JSON: {error}"),
            Self::Version(version) => {
                let spoken = VERSIONS.join(", ");
                write!(f, "cniVersion {version} can't be chained to; upgrade to one of {spoken}")
            }
            Self::NoPlugins => {
                f.write_str("no list of plugins to follow; make it a conflist, with `plugins` in it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"name":"n","cniVersion":"0.3.1","z":[1.50,{"b":1,"a":2}],
        "plugins":[{"type":"bridge","ipam":{}},{"type":"portmap"}],"disableCheck":true}"#;

    fn with(text: &str) -> Option<String> {
        with_entry(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_entry_comes_last_once_and_goes_again() {
        let edited = with(LIST).expect("it was not there");
        let value: Value = serde_json::from_str(&edited).expect("JSON");
        let types: Vec<_> = value["plugins"].as_array().expect("a list").iter().map(|p| &p["type"]).collect();
        assert_eq!(types, ["bridge", "portmap", "tulle-cni"]);
        assert_eq!(value["plugins"][2]["capabilities"][CAPABILITY], true);
        assert_eq!(with(&edited), None);
        let back = without_entry(&edited).expect("a list").expect("it was there");
        assert_eq!(back, print(parse(LIST).expect("JSON")));
        assert!(without_entry(&back).expect("a list").is_none());
    }

    #[test]
    fn what_others_append_stays_behind_ours() {
        let edited = with(LIST).expect("it was not there");
        let mut value: Value = serde_json::from_str(&edited).expect("JSON");
        value["plugins"].as_array_mut().expect("a list").push(json!({ "type": "other" }));
        assert_eq!(with(&value.to_string()), None);
    }

    #[test]
    fn entries_that_are_wrong_or_too_many_are_replaced() {
        let stale =
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"tulle-cni"},{"type":"a"},{"type":"tulle-cni"}]}"#;
        let edited = with(stale).expect("it changes");
        let value: Value = serde_json::from_str(&edited).expect("JSON");
        assert_eq!(value["plugins"].as_array().map(Vec::len), Some(2));
        assert_eq!(value["plugins"][0]["type"], "a");
        assert_eq!(with(&edited), None);
    }

    #[test]
    fn what_ours_can_not_follow_is_left_alone() {
        let bad = [
            ("{", "not JSON"),
            (r#"{"cniVersion":"1.0.0","type":"bridge"}"#, "no list"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "no list"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"tulle-cni"}]}"#, "no list"),
            (r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "0.2.0"),
            (r#"{"plugins":[{"type":"a"}]}"#, "0.1.0"),
        ];
        for (text, why) in bad {
            let error = with_entry(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
