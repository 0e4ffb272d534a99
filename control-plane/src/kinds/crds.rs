//! The CustomResourceDefinitions: the types' schemas, and what types can't say.
//!
//! In: the types of this module's parent. Out: YAML. Beside the schemas: conditions on several fields (CEL, in `tulle
//! check`'s words), what `kubectl get` shows, short names, and a digest of all that ([`SCHEMA`]).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use kube::CustomResourceExt;
use serde_json::{Value, json};
use tulle_mesh::xds;

use super::{
    AuthorizationPolicy, BackendTrafficPolicy, HTTPFaultFilter, InboundPolicy, TelemetryPolicy, Workload,
};

const HEADER: &str = "# Generated from the types in control-plane/src/kinds. To write it anew:\n\
    # UPDATE=1 cargo test -p tulle-control-plane crds\n";

/// What a type does not say of its kind.
struct Extra {
    file: &'static str,
    crd: fn() -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    /// It attaches to targets, and has a status that says what became of that.
    policy: bool,
    short: &'static str,
    /// Title and path.
    columns: &'static [(&'static str, &'static str)],
    /// The field below `spec` (`a.b[]` for the entries of a list), a condition, and a message.
    rules: &'static [(&'static str, &'static str, &'static str)],
}

const ONLY_SERVICES: (&str, &str, &str) = (
    "targetRefs[]",
    "(!has(self.group) || self.group in ['', 'core']) && self.kind == 'Service'",
    "only a Service can be a target",
);
const SERVICES_AND_NAMESPACES: (&str, &str, &str) = (
    "targetRefs[]",
    "(!has(self.group) || self.group in ['', 'core']) && self.kind in ['Service', 'Namespace']",
    "a target is a Service or the policy's Namespace",
);
const SECTIONS: (&str, &str, &str) = (
    "targetRefs[]",
    "!has(self.sectionName) || self.kind == 'Service'",
    "sectionName names a Service's port",
);

const EXTRAS: [Extra; 6] = [
    Extra {
        file: "authorizationpolicies.yaml",
        crd: AuthorizationPolicy::crd,
        policy: true,
        short: "authz",
        columns: &[("Action", ".spec.action"), ("Level", ".spec.enforcementLevel")],
        rules: &[
            (
                "",
                "(has(self.enforcementLevel) && self.enforcementLevel == 'Application') || !has(self.rules) || \
                 !self.rules.exists(rule, has(rule.http))",
                "conditions on requests need enforcementLevel: Application",
            ),
            (
                "targetRefs[]",
                "(!has(self.group) || self.group in ['', 'core']) && self.kind in ['Pod', 'Service', 'Namespace']",
                "a target is a Pod, a Service or the policy's Namespace",
            ),
            (
                "targetRefs[]",
                "self.kind != 'Pod' || has(self.selector)",
                "a target of kind Pod needs a selector; {} is all pods",
            ),
            (
                "targetRefs[]",
                "self.kind == 'Pod' || has(self.name)",
                "a target of kind Service or Namespace needs a name",
            ),
            (
                "rules[].sources[]",
                "self.type == 'ServiceAccount' ? has(self.serviceAccount) && !has(self.spiffe) : has(self.spiffe) && \
                 !has(self.serviceAccount)",
                "a source has either serviceAccount or spiffe, by its type",
            ),
        ],
    },
    Extra {
        file: "backendtrafficpolicies.yaml",
        crd: BackendTrafficPolicy::crd,
        policy: true,
        short: "btp",
        columns: &[("Algorithm", ".spec.loadBalancer.algorithm")],
        rules: &[
            ONLY_SERVICES,
            (
                "loadBalancer",
                "!has(self.algorithm) || self.algorithm != 'ConsistentHash' || has(self.consistentHash)",
                "ConsistentHash needs to know what to hash",
            ),
            (
                "loadBalancer.consistentHash",
                "self.type == 'SourceIP' || (self.type == 'Header' ? has(self.header) : has(self.cookie))",
                "the name of what is hashed is missing",
            ),
        ],
    },
    Extra {
        file: "httpfaultfilters.yaml",
        crd: HTTPFaultFilter::crd,
        policy: false,
        short: "fault",
        columns: &[("Delay", ".spec.delay.duration"), ("Abort", ".spec.abort.statusCode")],
        rules: &[("delay.fraction", PART, MORE), ("abort.fraction", PART, MORE)],
    },
    Extra {
        file: "inboundpolicies.yaml",
        crd: InboundPolicy::crd,
        policy: true,
        short: "inp",
        columns: &[("mTLS", ".spec.mtls.mode")],
        rules: &[
            SERVICES_AND_NAMESPACES,
            SECTIONS,
            (
                "concurrencyLimit",
                "!has(self.min) || !has(self.max) || self.min <= self.max",
                "min is no more than max",
            ),
            (
                "rateLimit.overrides[].clientRefs[]",
                "self.kind == 'ServiceAccount'",
                "a client is a ServiceAccount",
            ),
        ],
    },
    Extra {
        file: "telemetrypolicies.yaml",
        crd: TelemetryPolicy::crd,
        policy: true,
        short: "telp",
        columns: &[("Tracing", ".spec.tracing.mode"), ("Log", ".spec.accessLog.mode")],
        rules: &[SERVICES_AND_NAMESPACES, SECTIONS, ("tracing.samplingRate", PART, MORE)],
    },
    Extra {
        file: "workloads.yaml",
        crd: Workload::crd,
        policy: false,
        short: "wl",
        columns: &[
            ("Address", ".spec.address"),
            ("Account", ".spec.serviceAccount"),
            ("Meshed", ".spec.meshed"),
            ("Ready", ".spec.ready"),
        ],
        rules: &[],
    },
];

const PART: &str = "self.numerator <= (has(self.denominator) ? self.denominator : 100)";
const MORE: &str = "the rate is more than the whole";

/// The CRDs of all kinds: file name and YAML.
///
/// # Errors
/// When a schema can't be written as YAML, which would be a fault of the types.
pub fn crds() -> Result<Vec<(&'static str, String)>, String> {
    EXTRAS.iter().map(|extra| Ok((extra.file, format!("{HEADER}{}", extra.yaml()?)))).collect()
}

/// The annotation with a digest of a definition's `spec`: who sees no more of it than its metadata can tell whether it is the
/// one that belongs to this program.
pub const SCHEMA: &str = "tulle.dev/schema";

/// The digest ([`SCHEMA`]) of the definition of a name; `None` where it is not one of Tulle's.
pub fn schema_digest(definition: &str) -> Option<&'static str> {
    static DIGESTS: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let digests = DIGESTS.get_or_init(|| {
        let all = EXTRAS.iter().filter_map(|extra| extra.definition().ok());
        all.map(|crd| (text(&crd["metadata"]["name"]), text(&crd["metadata"]["annotations"][SCHEMA])))
            .collect()
    });
    digests.get(definition).map(String::as_str)
}

impl Extra {
    fn yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(&self.definition()?).map_err(|error| error.to_string())
    }

    fn definition(&self) -> Result<Value, String> {
        let mut crd = serde_json::to_value((self.crd)()).map_err(|error| error.to_string())?;
        let names = &mut crd["spec"]["names"];
        names["shortNames"] = json!([self.short]);
        names["categories"] = json!(["tulle"]);
        if self.policy {
            crd["metadata"]["labels"] = json!({"gateway.networking.k8s.io/policy": "Direct"});
        }
        let version = &mut crd["spec"]["versions"][0];
        version["additionalPrinterColumns"] = self.printed();
        for (field, rule, message) in self.rules {
            let mut schema = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            for part in field.split('.').filter(|part| !part.is_empty()) {
                let name = part.trim_end_matches("[]");
                schema = &mut schema["properties"][name];
                if name != part {
                    schema = &mut schema["items"];
                }
            }
            if schema["type"] != "object" {
                return Err(format!("{}: {field} is no object", self.file));
            }
            let rules = &mut schema["x-kubernetes-validations"];
            if rules.is_null() {
                *rules = json!([]);
            }
            if let Some(rules) = rules.as_array_mut() {
                rules.push(json!({"rule": rule, "message": message}));
            }
        }
        known_formats(&mut crd);
        let digest = xds::version(crd["spec"].to_string().as_bytes());
        crd["metadata"]["annotations"] = json!({ SCHEMA: digest });
        Ok(crd)
    }

    fn printed(&self) -> Value {
        let column = |name: &str, path: &str| json!({"name": name, "jsonPath": path, "type": "string"});
        let mut columns: Vec<Value> = Vec::new();
        if self.policy {
            columns.push(column("Target", ".spec.targetRefs[*].name"));
        }
        columns.extend(self.columns.iter().map(|(name, path)| column(name, path)));
        if self.policy {
            columns
                .push(column("Accepted", ".status.ancestors[*].conditions[?(@.type==\"Accepted\")].status"));
        }
        columns.push(json!({"name": "Age", "jsonPath": ".metadata.creationTimestamp", "type": "date"}));
        columns.into()
    }
}

/// The API server knows no format `ip`, and warns whoever applies the schema.
fn known_formats(value: &mut Value) {
    match value {
        Value::Object(schema) => {
            if schema.get("format").is_some_and(|format| format == "ip") {
                schema.shift_remove("format");
                schema.insert("pattern".into(), "^[0-9a-fA-F:.]+$".into());
            }
            schema.values_mut().for_each(known_formats);
        }
        Value::Array(values) => values.iter_mut().for_each(known_formats),
        _ => {}
    }
}
