//! What `tulle analyze` can find: one code for each kind of finding.
//!
//! The list here is the only one; `cli/FINDINGS.md` is generated from it. A code never changes its meaning, and one that is
//! no longer used is not given out again, so that scripts and searches can rely on it. Hundreds group what they are
//! about: 00 reading, 01 routes, 02 policies, 03 services, 04 pods and injection, 05 sidecars.

use clap::ValueEnum;
use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Info,
    /// It works, but maybe not as meant.
    Warning,
    /// Something is not in force.
    Error,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

macro_rules! codes {
    ($($number:literal $name:ident $level:ident $means:literal;)*) => {
        /// A kind of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $means] $name,)*
        }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its number.
            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// How bad a finding of the kind is.
            pub fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)* }
            }

            /// What it means.
            pub fn means(self) -> &'static str {
                match self { $(Self::$name => $means,)* }
            }
        }
    };
}

codes! {
    1 Unreadable Error "A file or an object can't be read; its last good version stays in force.";
    2 NotUnderstood Warning "A file or an object was read, but not all of it is understood.";
    101 RouteNotAttached Error "A route names a parent that does not exist, or that can't have routes.";
    102 RouteConflicted Warning "A route of a more specific kind holds for the same port.";
    103 BackendNotFound Error "A route leads to a backend that can't be found; its share of the requests fails.";
    104 ShadowedRule Warning "A rule can never match, because an earlier one has the same conditions.";
    105 FilterNotSupported Error "A filter of a route can't be done; its rule answers with an error.";
    106 RouteInvalid Error "A part of a route can't be done as it is written.";
    107 RouteDoubtful Warning "A part of a route does not do what it seems to.";
    108 RouteWithoutParent Warning "A route has no parent, and so no effect.";
    201 TargetNotFound Error "A policy names a target that does not exist, or that it can't have.";
    202 PolicyConflicted Warning "An older policy holds for the same target.";
    203 PolicyInvalid Error "A part of a policy can't be done as it is written.";
    204 PolicyDoubtful Warning "A part of a policy does not do what it seems to.";
    205 PolicySelectsNothing Warning "No pod or workload has the labels that a policy selects.";
    206 StrictWithUnmeshed Warning "Only mTLS is accepted, but pods of the same namespace have no sidecar to speak it.";
    301 ServiceInvalid Error "A part of a Service can't be used by the mesh.";
    302 ServiceDoubtful Warning "A part of a Service does not do what it seems to.";
    303 AmbiguousProtocol Info "The protocol of a port is not told, and is found out from the first bytes.";
    304 UdpPort Info "A port is not TCP: its traffic does not go through the mesh.";
    305 ServiceSelectsNothing Warning "No pod or workload has the labels that a Service selects.";
    306 TargetPortNotFound Warning "No selected pod or workload has a port of the name that a Service leads to.";
    307 ClientAffinityIgnored Warning "Connections through the mesh do not stay at one endpoint by the client's address.";
    401 WorkloadInvalid Error "A pod or Workload can't be a part of the mesh as it is written.";
    402 InjectionLabelMisspelled Warning "A label looks like the one for injection, but is not.";
    403 InjectionValueUnknown Warning "The label for injection has a value that means nothing.";
    404 HostNetwork Warning "A pod shares its node's network, and gets no sidecar.";
    405 PodNotInjected Warning "A pod should have a sidecar and has none.";
    406 SidecarUser Warning "A container runs as the sidecar's user: its traffic would go around the mesh.";
    407 OldSidecar Info "A pod's sidecar is of another version than this program.";
    408 OtherMesh Warning "A pod that asks for a sidecar has the proxy of another mesh.";
    501 SidecarRejects Error "A connected sidecar rejects configuration; its last good version is in force.";
    502 SidecarBehind Warning "A connected sidecar has not acknowledged its configuration yet.";
    503 CredentialExpired Error "A connected sidecar's certificate has expired.";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TUL{:04}", self.number())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All codes as a table in Markdown.
pub fn document() -> String {
    let mut text = String::from(
        "# What `tulle analyze` finds\n\n\
         Generated from `cli/src/commands/analyze/codes.rs`. To write it anew: `UPDATE=1 cargo test -p tulle-cli findings`.\n\n\
         | code | severity | name | meaning |\n| --- | --- | --- | --- |\n",
    );
    for code in Code::ALL {
        text.push_str(&format!("| {code} | {} | {} | {} |\n", code.level(), code.name(), code.means()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_in_order() {
        let numbers: Vec<_> = Code::ALL.iter().map(|code| code.number()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        assert_eq!(Code::Unreadable.to_string(), "TUL0001");
    }

    /// With `UPDATE=1` in the environment, writes the file instead of comparing it.
    #[test]
    fn the_table_of_findings_is_that_of_the_codes() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("FINDINGS.md");
        if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
            std::fs::write(&path, document()).expect("writable");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == document(), "run UPDATE=1 cargo test -p tulle-cli findings");
    }
}
