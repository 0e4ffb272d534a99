//! Durations as text (GEP-2257).
//!
//! In: `1h30m`, `250ms`. Out: a [`std::time::Duration`]. Nothing that GEP-2257 refuses (signs, fractions, bare numbers)
//! gets in.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, written as one to four numbers of at most five digits, each with a unit: `h`, `m`, `s` or `ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// The length of time.
    pub fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("{text:?} is not a duration: write numbers with the units h, m, s or ms, such as 1m30s")
        };
        let (mut rest, mut total) = (text, std::time::Duration::ZERO);
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 5 {
                return Err(error());
            }
            let count: u64 = rest[..digits].parse().map_err(|_| error())?;
            let (millis, unit) = match &rest[digits..] {
                tail if tail.starts_with("ms") => (1, 2),
                tail if tail.starts_with('s') => (1_000, 1),
                tail if tail.starts_with('m') => (60_000, 1),
                tail if tail.starts_with('h') => (3_600_000, 1),
                _ => return Err(error()),
            };
            total += std::time::Duration::from_millis(count * millis);
            rest = &rest[digits + unit..];
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
        Err(error())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        if total == 0 {
            return f.write_str("0s");
        }
        for (unit, size, limit) in
            [("h", 3_600_000, u128::MAX), ("m", 60_000, 60), ("s", 1_000, 60), ("ms", 1, 1_000)]
        {
            let count = (total / size) % limit;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::Duration;

    #[test]
    fn a_duration_prints_in_the_form_that_it_parses() {
        for (text, printed) in
            [("1h30m", "1h30m"), ("90s", "1m30s"), ("250ms", "250ms"), ("0s", "0s"), ("1s1500ms", "2s500ms")]
        {
            let duration: Duration = text.parse().expect("valid");
            assert_eq!(duration.to_string(), printed);
            assert_eq!(printed.parse::<Duration>(), Ok(duration));
        }
        for bad in ["", "1", "1.5s", "-1s", "1d", "1 s", "123456s", "1us"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }
}
