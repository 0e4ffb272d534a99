//! When a request came, in the words of `strftime` that Envoy knows: always in UTC.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::StdIoWrite;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::TimeZone;

/// How a time is written: in jiff's words, which differ from Envoy's in fractions of a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Box<str>);

/// What a letter behind a percent sign may be, besides `f` and `E`.
const FIELDS: &str = "%YmdeHMSyjbBaAsZzIpFTRD";

impl TimeFormat {
    /// Reads a format; an empty one is Envoy's own, RFC 3339 with milliseconds.
    pub(super) fn parse(format: &str) -> Result<Self, &'static str> {
        let format = if format.is_empty() { "%Y-%m-%dT%H:%M:%E3SZ" } else { format };
        let mut words = String::new();
        let mut rest = format.chars();
        while let Some(next) = rest.next() {
            words.push(next);
            if next != '%' {
                continue;
            }
            let digit = |digit: char| ('1'..='9').contains(&digit);
            match (rest.next(), rest.as_str().as_bytes()) {
                (Some('f'), _) => words.push_str("9f"),
                (Some(digits), [b'f', ..]) if digit(digits) => {
                    words.extend([digits, 'f']);
                    rest.next();
                }
                (Some('E'), [digits @ b'1'..=b'9', unit @ (b'S' | b'f'), ..]) => {
                    if *unit == b'S' {
                        words.push_str("S.%");
                    }
                    words.extend([char::from(*digits), 'f']);
                    rest.nth(1);
                }
                (Some(letter), _) if FIELDS.contains(letter) => words.push(letter),
                _ => return Err(UNKNOWN),
            }
        }
        Ok(Self(words.into()))
    }

    /// Writes a time behind `out`, as far as the calendar goes.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        if let Ok(time) = Timestamp::try_from(time) {
            let time = BrokenDownTime::from(&time.to_zoned(TimeZone::UTC));
            // Two digits can't tell every year.
            let _ = time.format(&*self.0, StdIoWrite(out));
        }
    }
}

const UNKNOWN: &str = "has a field of a time that is not known: use those of %Y-%m-%dT%H:%M:%S, %e, %y, %j, %b, %B, %a, %A, %I, %p, \
                       %s, %f, %3f, %E3S, %Z, %z, %F, %T, %R, %D";
