//! Reads what a process tells over HTTP: plain pages and Prometheus text.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::{Client, Method};

/// How long a page may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Never through a proxy: these pages are the mesh's own.
static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    let client = Client::builder().no_proxy().timeout(FETCH_TIMEOUT).build();
    client.expect("a client without TLS and without files needs nothing that could be missing")
});

/// Gets a page: its status and its text.
///
/// # Errors
/// When nobody answers, or not with HTTP, within 5 s.
pub async fn fetch(url: &str) -> Result<(u16, String), String> {
    request(Method::GET, url).await
}

/// Asks for a page with a method: its status and its text.
///
/// # Errors
/// As [`fetch`].
pub async fn request(method: Method, url: &str) -> Result<(u16, String), String> {
    let response = CLIENT.request(method, url).send().await.map_err(|error| chain(&error))?;
    let status = response.status().as_u16();
    Ok((status, response.text().await.map_err(|error| chain(&error))?))
}

/// An error with all its causes: the outermost alone does not say what failed.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The samples of a metrics page.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Sample>);

/// One line of a metrics page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The series' name, with suffixes such as `_total`.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty where it has none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }
}

impl Samples {
    /// Reads Prometheus or OpenMetrics text; lines that are neither are passed over.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_line).collect())
    }

    /// The samples of one name whose labels include all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> + 'a {
        self.0.iter().filter(move |sample| {
            sample.name == name && labels.iter().all(|(label, value)| sample.label(label) == *value)
        })
    }

    /// The sum over the samples of one name whose labels include all of `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Sample { name: name.into(), labels: Vec::new(), value: parse_value(value)? });
    };
    let mut labels = Vec::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some(Sample { name: name.into(), labels, value: parse_value(value.trim_start())? });
        }
        let (label, after) = rest.split_once("=\"")?;
        let (value, after) = unquote(after)?;
        labels.push((label.into(), value));
        rest = after;
    }
}

/// The text up to the closing quote, without its escapes, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

fn parse_value(text: &str) -> Option<f64> {
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let samples = Samples::parse(
            "# HELP a b\na_total{x=\"1\",y=\"a \\\"b\\\"\\\\\"} 3\na_total{x=\"2\"} 4 1700000000\nb 1.5\nc{} -2\n# EOF\n",
        );
        assert_eq!(samples.sum("a_total", &[]), 7.0);
        assert_eq!(samples.sum("a_total", &[("x", "1")]), 3.0);
        assert_eq!(samples.sum("b", &[]), 1.5);
        assert_eq!(samples.sum("c", &[]), -2.0);
        let first = samples.select("a_total", &[("x", "1")]).next().expect("there is one");
        assert_eq!(first.label("y"), "a \"b\"\\");
        assert_eq!(first.label("z"), "");
    }
}
