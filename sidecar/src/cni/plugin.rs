//! The plugin's commands.

use std::ffi::OsString;
use std::io::{Read, Write};

use serde_json::{Value, json};

use super::call::{Call, VERSIONS, Verb};
use super::failure::{Code, Failure};
use super::{namespace, pod};
use crate::redirect;

/// Answers one call of a runtime, whose environment and standard input are given. Returns whether it succeeded; what the
/// runtime is told is written either way.
///
/// ADD makes the rules, in place of those that are there. DEL leaves them, because they end with the namespace, and a
/// process that outlives the call must not get past them. CHECK wants them all. GC has nothing to collect.
pub fn plugin(variable: impl Fn(&str) -> Option<OsString>, input: impl Read, mut output: impl Write) -> bool {
    let (version, outcome) = match Call::read(variable, input) {
        Ok(call) => {
            let outcome = answer(&call);
            (call.version, outcome)
        }
        Err((version, failure)) => (version, Err(failure)),
    };
    let succeeded = outcome.is_ok();
    let said = match outcome {
        Ok(result) => result,
        Err(failure) => Some(failure.object(&version)),
    };
    // A runtime that does not listen learns from the exit code.
    said.is_none_or(|said| writeln!(output, "{said}").is_ok()) && succeeded
}

fn answer(call: &Call) -> Result<Option<Value>, Failure> {
    match call.verb {
        Verb::Add => add(call).map(Some),
        Verb::Check => check(call).map(|()| None),
        Verb::Del | Verb::Gc => Ok(None),
        Verb::Status => status().map(|()| None),
        Verb::Version => Ok(Some(json!({ "cniVersion": call.version, "supportedVersions": VERSIONS }))),
    }
}

fn add(call: &Call) -> Result<Value, Failure> {
    let result = previous(call)?;
    if let (Some(settings), Some(netns)) = (pod::settings(&call.configuration)?, &call.netns) {
        namespace::within(netns, || redirect::init(&settings))?.map_err(|error| {
            Failure::new(Code::Rules, "traffic can't be redirected to the sidecar", error)
        })?;
    }
    Ok(result.clone())
}

fn check(call: &Call) -> Result<(), Failure> {
    previous(call)?;
    if let (Some(settings), Some(netns)) = (pod::settings(&call.configuration)?, &call.netns) {
        let there = namespace::within(netns, || redirect::is_in_place(&settings))?
            .map_err(|error| Failure::new(Code::Rules, "the pod's rules can't be read", error))?;
        if !there {
            let why = "rules of the table inet tulle are missing; delete the pod";
            return Err(Failure::new(Code::RulesMissing, "traffic is not redirected to the sidecar", why));
        }
    }
    Ok(())
}

/// Whether the kernel can do what ADD will ask for.
fn status() -> Result<(), Failure> {
    match redirect::is_supported() {
        Ok(()) => Ok(()),
        Err(error) => Err(Failure::new(Code::NotAvailable, "the kernel's nftables can't be used", error)),
    }
}

/// The result of the plugin before.
fn previous(call: &Call) -> Result<&Value, Failure> {
    call.configuration.get("prevResult").filter(|result| result.is_object()).ok_or_else(|| {
        let why =
            "there is no prevResult: list it in a conflist, after the plugin that makes the pod's network";
        Failure::new(Code::InvalidConfiguration, "the plugin must be chained", why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(verb: &str, configuration: Value) -> (bool, Value) {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.into()),
            "CNI_NETNS" => Some("/nowhere".into()),
            _ => Some("a".into()),
        };
        let mut said = Vec::new();
        let succeeded = plugin(variable, configuration.to_string().as_bytes(), &mut said);
        (succeeded, serde_json::from_slice(&said).unwrap_or(Value::Null))
    }

    #[test]
    fn the_result_before_is_passed_on_as_it_is() {
        let result = json!({
            "cniVersion": "1.0.0",
            "ips": [{ "address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 2, "x": [1.5, null] }],
            "unknown": { "b": 18_446_744_073_709_551_615_u64, "a": "\u{1F980}" },
            "dns": {},
        });
        let (succeeded, said) = call("ADD", json!({ "cniVersion": "1.0.0", "prevResult": result }));
        assert!(succeeded);
        assert_eq!(said.to_string(), result.to_string());
    }

    #[test]
    fn without_a_plugin_before_there_is_an_error_object() {
        for verb in ["ADD", "CHECK"] {
            let (succeeded, said) = call(verb, json!({ "cniVersion": "1.0.0" }));
            assert!(!succeeded);
            assert_eq!((&said["code"], &said["cniVersion"]), (&json!(7), &json!("1.0.0")));
            assert!(said["msg"].as_str().is_some_and(|text| text.contains("chained")), "{said}");
        }
    }

    #[test]
    fn what_has_nothing_to_do_says_nothing() {
        for verb in ["DEL", "GC"] {
            assert_eq!(call(verb, json!({ "cniVersion": "1.1.0" })), (true, Value::Null));
        }
    }

    #[test]
    fn the_versions_are_told() {
        let (succeeded, said) = call("VERSION", json!({ "cniVersion": "0.4.0" }));
        assert!(succeeded);
        assert_eq!(said, json!({ "cniVersion": "0.4.0", "supportedVersions": VERSIONS }));
    }

    #[test]
    fn a_namespace_that_is_not_there_fails_only_pods_that_need_rules() {
        let configuration = |annotations: Value| {
            let runtime = json!({ pod::CAPABILITY: annotations });
            json!({ "cniVersion": "1.0.0", "prevResult": {}, "runtimeConfig": runtime })
        };
        assert!(call("ADD", configuration(json!({}))).0);
        let injected = json!({ pod::STATUS: r#"{"containers":["tulle-validate"]}"# });
        let (succeeded, said) = call("ADD", configuration(injected));
        assert!(!succeeded);
        assert_eq!(said["code"], 101);
    }
}
