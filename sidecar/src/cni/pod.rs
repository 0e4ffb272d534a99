//! What a pod needs, from the annotations that the runtime hands over.
//!
//! In: the configuration of a call. Out: the settings of the rules, or `None` for a pod that gets none. Annotations are
//! whatever the pod's author wrote: they decide about nothing but the rules in that pod's own namespace.

use clap::{Args, Command, FromArgMatches};
use serde_json::{Map, Value};

use super::failure::{Code, Failure};
use crate::redirect::InitSettings;

/// The runtime's capability to hand over a pod's annotations; containerd and CRI-O have it.
pub(super) const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// The annotation by which the injector tells what it has put into the pod.
pub(super) const STATUS: &str = "tulle.dev/status";
/// The container that waits for the rules.
const VALIDATE: &str = "tulle-validate";
/// The container that makes them itself.
const INIT: &str = "tulle-init";

/// The annotations that are flags of `tulle-sidecar init` too.
const FLAGS: [(&str, &str); 3] = [
    ("tulle.dev/skip-inbound-ports", "--skip-inbound-ports"),
    ("tulle.dev/skip-outbound-ports", "--skip-outbound-ports"),
    ("tulle.dev/skip-subnets", "--skip-subnets"),
];

/// The settings of the pod's rules.
pub(super) fn settings(configuration: &Map<String, Value>) -> Result<Option<InitSettings>, Failure> {
    let given = configuration.get("runtimeConfig").and_then(|runtime| runtime.get(CAPABILITY));
    let annotation = |name: &str| given.and_then(|annotations| annotations.get(name)?.as_str());
    let Some(status) = annotation(STATUS) else { return Ok(None) };
    let status: Value = serde_json::from_str(status).map_err(|error| wrong(STATUS, error.to_string()))?;
    let containers = status["containers"].as_array();
    let has = |name| containers.is_some_and(|list| list.iter().any(|container| container == name));
    if !has(VALIDATE) || has(INIT) {
        return Ok(None);
    }
    let mut arguments = Vec::new();
    for (name, flag) in FLAGS {
        let Some(value) = annotation(name) else { continue };
        let argument = format!("{flag}={}", value.trim());
        // Each by itself first, for an error that names it.
        parse([&argument]).map_err(|error| wrong(name, error))?;
        arguments.push(argument);
    }
    parse(&arguments).map(Some).map_err(|error| wrong(STATUS, error))
}

/// Everything that no argument gives has the default of `tulle-sidecar init`.
fn parse<'a>(arguments: impl IntoIterator<Item = &'a String>) -> Result<InitSettings, String> {
    // The environment is the runtime's: nothing in it is meant for the pod.
    let command = InitSettings::augment_args(Command::new("redirect").no_binary_name(true))
        .mut_args(|argument| argument.env(None));
    let settings =
        command.try_get_matches_from(arguments).and_then(|matches| InitSettings::from_arg_matches(&matches));
    settings.map_err(|error| error.to_string().trim().to_owned())
}

fn wrong(annotation: &str, why: String) -> Failure {
    Failure::new(Code::InvalidAnnotation, format!("the pod's annotation {annotation} is wrong"), why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INJECTED: &str = r#"{"version":"0.1.0","containers":["tulle-validate","tulle-sidecar"]}"#;

    fn of(annotations: Value) -> Result<Option<InitSettings>, Failure> {
        let Value::Object(configuration) = json!({ "runtimeConfig": { CAPABILITY: annotations } }) else {
            unreachable!("it is an object")
        };
        settings(&configuration)
    }

    #[test]
    fn only_a_pod_that_waits_for_rules_gets_them() {
        let init = r#"{"containers":["tulle-init","tulle-sidecar"]}"#;
        let both = r#"{"containers":["tulle-init","tulle-validate"]}"#;
        for without in [
            json!(null),
            json!([]),
            json!({}),
            json!({ "tulle.dev/inject": "enabled", "tulle.dev/skip-inbound-ports": "x" }),
            json!({ STATUS: init }),
            json!({ STATUS: both }),
            json!({ STATUS: "{}" }),
            json!({ STATUS: "[]" }),
            json!({ STATUS: r#"{"containers":"tulle-validate"}"# }),
        ] {
            let text = without.to_string();
            assert!(of(without).expect("nothing is wrong").is_none(), "{text}");
        }
        assert!(settings(&Map::new()).expect("nothing is wrong").is_none());
        let settings = of(json!({ STATUS: INJECTED })).expect("good").expect("it waits");
        assert_eq!((settings.uid.get(), settings.outbound_port.get()), (2102, 15001));
    }

    #[test]
    fn its_annotations_are_the_flags_of_init() {
        let annotations = json!({
            STATUS: INJECTED,
            "tulle.dev/skip-inbound-ports": " 22,80-90 ",
            "tulle.dev/skip-outbound-ports": "5432",
            "tulle.dev/skip-subnets": "10.0.0.0/8",
        });
        let settings = of(annotations).expect("good").expect("it waits");
        assert_eq!(settings.skip_inbound_ports, "22,80-90".parse().expect("ports"));
        assert_eq!(settings.skip_outbound_ports, "5432".parse().expect("ports"));
        assert_eq!(settings.skip_subnets, "10.0.0.0/8".parse().expect("subnets"));
    }

    #[test]
    fn a_wrong_annotation_is_named() {
        for (name, value) in [
            (STATUS, "{"),
            ("tulle.dev/skip-inbound-ports", "http"),
            ("tulle.dev/skip-outbound-ports", "0"),
            ("tulle.dev/skip-subnets", "10.0.0.1/8"),
        ] {
            let mut annotations = json!({ STATUS: INJECTED });
            annotations[name] = value.into();
            let failure = of(annotations).expect_err(name);
            assert_eq!(failure.code, Code::InvalidAnnotation);
            assert!(failure.object("1.0.0")["msg"].to_string().contains(name));
        }
    }
}
