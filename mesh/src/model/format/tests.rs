use std::time::{Duration, SystemTime};

use super::*;

/// The value of a text where an operator stands for its own name in Rust, but nothing in the response.
fn value(text: &str, missing: &str) -> String {
    let mut out = Vec::new();
    Format::parse(text).unwrap().write(missing.as_bytes(), &mut out, |operator, out| {
        if !matches!(operator, Operator::Response(..)) {
            out.extend(format!("{operator:?}").bytes());
        }
    });
    String::from_utf8(out).unwrap()
}

#[test]
fn operators_stand_between_texts() {
    let cases = [
        ("", ""),
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%%PROTOCOL%%", "%PROTOCOL%"),
        ("%%%PROTOCOL%%%", "%Protocol%"),
        ("a%PROTOCOL%b%HOSTNAME%c", "aProtocolbHostnamec"),
        ("%RESP(x)%", ""),
        ("[%RESP(x)%]", "[]"),
        ("%REQ(:method?X-A):7%", "Request"),
        ("%REQ(x):0%", ""),
        ("%UPSTREAM_CLUSTER_RAW%", "ClusterName"),
        ("%VIRTUAL_CLUSTER_NAME%", "Other(\"VIRTUAL_CLUSTER_NAME\")"),
    ];
    for (text, expected) in cases {
        assert_eq!(value(text, ""), expected, "{text}");
    }
    assert_eq!(value("[%RESP(x)%]", "-"), "[-]");
    assert_eq!(Format::parse("100%%").unwrap().literal(), Some(&b"100%"[..]));
    assert_eq!(Format::parse("%PROTOCOL%").unwrap().literal(), None);
}

#[test]
fn names_of_headers_are_read_without_regard_to_case() {
    let format = Format::parse("%REQ(Host?X-A)%%RESP(:STATUS)%").unwrap();
    let named = HeadField::Named("x-a".parse().unwrap());
    let request = Operator::Request(HeadField::Authority, Some(named));
    let expected = [request, Operator::Response(HeadField::Status, None)];
    assert_eq!(format.operators().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
}

#[test]
fn what_is_no_operator_is_refused_as_by_envoy() {
    let cases = [
        ("%", "the % at byte 0 begins no command operator"),
        ("50% off", "the % at byte 2 begins no command operator"),
        ("%PROTOCOL% %", "the % at byte 11 begins no command operator"),
        ("%REQ(x", "the % at byte 0 begins no command operator"),
        ("%REQ(x):y%", "the % at byte 0 begins no command operator"),
        ("%req(x)%", "the % at byte 0 begins no command operator"),
        ("%REQ%", "%REQ% needs the name of a header"),
        ("%REQ()%", "%REQ% needs the name of a header"),
        ("%RESP(a b)%", "%RESP% names what can't be the name of a header"),
        ("%REQ(a?b?c)%", "%REQ% names more than one alternative"),
        ("%PROTOCOL(x)%", "%PROTOCOL% takes no parameter and no length"),
        ("%HOSTNAME:3%", "%HOSTNAME% takes no parameter and no length"),
        ("%START_TIME:3%", "%START_TIME% takes no length"),
        ("%START_TIME(%Q)%", "%START_TIME% has a field of a time that is not known"),
    ];
    for (text, expected) in cases {
        let error = Format::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
        let mut line = Vec::new();
        Format::lenient(text).write(b"", &mut line, |_, out| out.extend(b"%PROTOCOL%"));
        assert_eq!(line, text.as_bytes());
    }
    assert_eq!(Format::lenient("50% %PROTOCOL%").operators().count(), 1);
}

#[test]
fn a_time_is_written_as_envoy_does() {
    let at = |seconds: u64, nanos: u32, format: &str| {
        let mut out = Vec::new();
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        TimeFormat::parse(format).unwrap().write(time, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(at(1_795_444_798, 40_055_000, ""), "2026-11-23T14:39:58.040Z");
    assert_eq!(at(1_795_444_798, 40_055_000, "%s.%3f"), "1795444798.040");
    assert_eq!(
        at(1_795_444_798, 40_055_000, "%Y/%m/%dT%H:%M:%S%z %f %6f %1f %E3S %%"),
        "2026/11/23T14:39:58+0000 040055000 040055 0 58.040 %"
    );
    assert_eq!(
        at(1_795_444_798, 0, "%a, %e %b %y %I %p %j %A %B %Z"),
        "Mon, 23 Nov 26 02 PM 327 Monday November UTC"
    );
    assert_eq!(at(0, 0, "%F %T %D %R %a"), "1970-01-01 00:00:00 01/01/70 00:00 Thu");
    assert_eq!(at(951_782_400, 0, "%F"), "2000-02-29");
    assert_eq!(at(4_107_542_400, 0, "%F"), "2100-03-01");
    assert_eq!(at(1_798_761_599, 0, "%F %T"), "2026-12-31 23:59:59");
}
