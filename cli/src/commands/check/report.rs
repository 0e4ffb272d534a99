//! The verdicts, in the order in which things were looked at.

use serde::Serialize;

use crate::output::{Failure, Format, print, style};

/// All verdicts.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    checks: Vec<Check>,
    failures: usize,
    warnings: usize,
    #[serde(skip)]
    section: &'static str,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    /// What it belongs to.
    section: &'static str,
    verdict: Verdict,
    /// What is claimed.
    what: String,
    /// Why it does not hold, or not as it should.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

/// Whether it is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

impl Report {
    /// What follows belongs to another section.
    pub(super) fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    /// It is as it should be.
    pub(super) fn pass(&mut self, what: impl Into<String>) {
        self.add(Verdict::Pass, what.into(), String::new(), String::new());
    }

    /// It works, but deserves a look.
    pub(super) fn warn(
        &mut self,
        what: impl Into<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.warnings += 1;
        self.add(Verdict::Warn, what.into(), reason.into(), hint.into());
    }

    /// It does not work.
    pub(super) fn fail(
        &mut self,
        what: impl Into<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.failures += 1;
        self.add(Verdict::Fail, what.into(), reason.into(), hint.into());
    }

    /// The API server does not tell: the user has no right to know it, or the server fails.
    pub(super) fn untold(&mut self, what: impl Into<String>, error: &kube::Error) {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                self.warn(what, status.message.clone(), "ask as who may read it: this could not be checked");
            }
            _ => self.fail(what, error.to_string(), "ask again; look at the API server if it goes on"),
        }
    }

    /// Whether the program ends with status 1.
    pub(super) fn failed(&self, strict: bool) -> bool {
        self.failures > 0 || (strict && self.warnings > 0)
    }

    /// Prints it.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub(super) fn print(&self, format: Format) -> Result<(), Failure> {
        print(format, self, Self::table)
    }

    fn add(&mut self, verdict: Verdict, what: String, reason: String, hint: String) {
        self.checks.push(Check { section: self.section, verdict, what, reason, hint });
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for check in &self.checks {
            if check.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = check.section;
                text.push_str(&format!("{gap}{}\n", style::title(section)));
            }
            let word = match check.verdict {
                Verdict::Pass => style::good("ok  "),
                Verdict::Warn => style::doubtful("warn"),
                Verdict::Fail => style::bad("fail"),
            };
            text.push_str(&format!("{word}  {}", check.what));
            if !check.reason.is_empty() {
                text.push_str(&format!(": {}", check.reason));
            }
            text.push('\n');
            if !check.hint.is_empty() {
                text.push_str(&format!("      {}\n", check.hint));
            }
        }
        let Self { checks, failures, warnings, .. } = self;
        let sum =
            format!("{} ok, {warnings} to look at, {failures} failed", checks.len() - failures - warnings);
        let sum = match (failures, warnings) {
            (0, 0) => style::good(sum),
            (0, _) => style::doubtful(sum),
            _ => style::bad(sum),
        };
        text + "\n" + &sum + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_decides_and_a_warning_does_when_asked_to() {
        let mut report = Report::default();
        report.section("kubernetes");
        report.pass("the API server answers");
        assert!(!report.failed(true));
        report.warn("nodes", "one is old", "upgrade it");
        assert!(report.failed(true) && !report.failed(false));
        report.section("pods");
        report.fail("it runs", "it does not", "start it");
        assert!(report.failed(false));
        assert_eq!(
            anstream::adapter::strip_str(&report.table()).to_string(),
            "kubernetes\nok    the API server answers\nwarn  nodes: one is old\n      upgrade it\n\npods\nfail  it runs: it \
             does not\n      start it\n\n1 ok, 1 to look at, 1 failed\n"
        );
    }

    #[test]
    fn a_right_that_is_missing_is_no_failure_of_the_mesh() {
        let status = |code| kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() }));
        let mut report = Report::default();
        report.untold("secrets", &status(403));
        assert!(!report.failed(false));
        report.untold("secrets", &status(500));
        assert!(report.failed(false));
    }
}
