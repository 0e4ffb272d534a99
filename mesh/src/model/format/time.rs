//! When a request came, in the words of `strftime`, as far as a log or a header needs them: always in UTC.

use std::io::Write;
use std::time::{Duration, SystemTime};

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Box<[Piece]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// One of [`FIELDS`].
    Field(char),
    /// So many digits of the second's fraction.
    Fraction(u8),
}

/// What a letter behind a percent sign may be, besides `%`, `f`, and what is short for several of these.
const FIELDS: &str = "YmdeHMSyjbBaAsZzIp";
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl TimeFormat {
    /// Reads a format; an empty one is Envoy's own, RFC 3339 with milliseconds.
    pub(super) fn parse(format: &str) -> Result<Self, &'static str> {
        let format = if format.is_empty() { "%Y-%m-%dT%H:%M:%E3SZ" } else { format };
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(next) = rest.next() {
            if next != '%' {
                text.push(next);
                continue;
            }
            let found = match rest.next() {
                Some('%') => {
                    text.push('%');
                    continue;
                }
                Some('F') => "Y-m-d".chars().map(field).collect(),
                Some('T') => "H:M:S".chars().map(field).collect(),
                Some('R') => "H:M".chars().map(field).collect(),
                Some('D') => "m/d/y".chars().map(field).collect(),
                Some('f') => vec![Piece::Fraction(9)],
                Some(digit @ '1'..='9') if rest.next() == Some('f') => vec![Piece::Fraction(digits(digit))],
                Some('E') => match (rest.next(), rest.next()) {
                    (Some(digit @ '1'..='9'), Some('S')) => {
                        vec![field('S'), field('.'), Piece::Fraction(digits(digit))]
                    }
                    (Some(digit @ '1'..='9'), Some('f')) => vec![Piece::Fraction(digits(digit))],
                    _ => return Err(UNKNOWN),
                },
                Some(letter) if FIELDS.contains(letter) => vec![Piece::Field(letter)],
                _ => return Err(UNKNOWN),
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text).into()));
            }
            pieces.extend(found);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// Writes a time behind `out`; nothing for one before 1970.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let Ok(since) = time.duration_since(SystemTime::UNIX_EPOCH) else { return };
        let now = Civil::of(since);
        for piece in &self.0 {
            let written = match piece {
                Piece::Text(text) => out.write_all(text.as_bytes()),
                Piece::Fraction(digits) => {
                    let fraction = since.subsec_nanos() / 10_u32.pow(9 - u32::from(*digits));
                    write!(out, "{fraction:0width$}", width = usize::from(*digits))
                }
                Piece::Field(letter) => now.write(*letter, since, out),
            };
            written.expect("a vector grows");
        }
    }
}

const UNKNOWN: &str = "has a field of a time that is not known: use those of %Y-%m-%dT%H:%M:%S, %e, %y, %j, %b, %B, %a, %A, %I, %p, \
                       %s, %f, %3f, %E3S, %Z, %z, %F, %T, %R, %D";

fn field(letter: char) -> Piece {
    if FIELDS.contains(letter) { Piece::Field(letter) } else { Piece::Text(letter.to_string().into()) }
}

fn digits(digit: char) -> u8 {
    digit.to_digit(10).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(9)
}

/// A time in UTC.
struct Civil {
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    /// From 1.
    day_of_year: u64,
    weekday: usize,
    second_of_day: u64,
}

impl Civil {
    fn of(since: Duration) -> Self {
        let days = since.as_secs() / 86_400;
        let (mut year, mut left) = (1970, days);
        // Whole cycles of the calendar first, so that no time takes long.
        year += 400 * (left / 146_097);
        left %= 146_097;
        while left >= length(year) {
            left -= length(year);
            year += 1;
        }
        let day_of_year = left + 1;
        let mut month = 0;
        while left >= month_length(year, month) {
            left -= month_length(year, month);
            month += 1;
        }
        let weekday = usize::try_from(days % 7).unwrap_or_default();
        Self { year, month, day: left + 1, day_of_year, weekday, second_of_day: since.as_secs() % 86_400 }
    }

    fn write(&self, letter: char, since: Duration, out: &mut Vec<u8>) -> std::io::Result<()> {
        let second = self.second_of_day;
        let hour = second / 3_600;
        match letter {
            'Y' => write!(out, "{}", self.year),
            'y' => write!(out, "{:02}", self.year % 100),
            'm' => write!(out, "{:02}", self.month + 1),
            'd' => write!(out, "{:02}", self.day),
            'e' => write!(out, "{:2}", self.day),
            'j' => write!(out, "{:03}", self.day_of_year),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
            'p' => out.write_all(if hour < 12 { b"AM" } else { b"PM" }),
            'M' => write!(out, "{:02}", second / 60 % 60),
            'S' => write!(out, "{:02}", second % 60),
            's' => write!(out, "{}", since.as_secs()),
            'B' => out.write_all(MONTHS[self.month].as_bytes()),
            'b' => out.write_all(&MONTHS[self.month].as_bytes()[..3]),
            'A' => out.write_all(DAYS[self.weekday].as_bytes()),
            'a' => out.write_all(&DAYS[self.weekday].as_bytes()[..3]),
            'Z' => out.write_all(b"UTC"),
            _ => out.write_all(b"+0000"),
        }
    }
}

fn length(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_length(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}
