//! What Envoy and the sidecar did, compared; the differences that are meant so, each with its reason.
//!
//! Nothing else may differ. An entry takes away, from both outcomes, just what it speaks of, and only where it was seen.

use std::collections::BTreeMap;
use std::fmt::Write;

use tulle_tests::Seen;
use tulle_tests::oracle::{Outcome, Then};

/// A difference that is meant so.
pub(crate) struct Kept {
    /// What a failure calls it.
    pub(crate) name: &'static str,
    /// Why it is there.
    pub(crate) reason: &'static str,
    /// Takes it away, and says whether it was there.
    forgive: fn(&mut Outcome, &mut Outcome) -> bool,
}

/// All of them, in the order in which they are taken away.
pub(crate) const KEPT: &[Kept] = &[
    Kept {
        name: "safe retries",
        reason: "a policy adds to what is safe anyway: a GET is tried again after a failure that the mesh itself saw",
        forgive: |envoy, tulle| {
            // What has asked for a WebSocket is a GET, too.
            let safe = envoy.upstream.first().is_some_and(|(_, seen)| {
                seen.line.starts_with("GET ") || !seen.header("protocol").is_empty()
            });
            let there = safe
                && tulle.upstream.len() > envoy.upstream.len()
                && ENVOYS_WORDS.iter().any(|words| envoy.received.body.starts_with(words));
            if there {
                tulle.clone_from(envoy);
            }
            there
        },
    },
    Kept {
        name: "unprocessed requests",
        reason: "what no endpoint has looked at (REFUSED_STREAM, a GOAWAY before it) goes elsewhere, whatever its method",
        forgive: |envoy, tulle| {
            let headers = &envoy.received.headers;
            let message = headers.iter().find(|(name, _)| name == "grpc-message").map(|(_, message)| message);
            let there = tulle.upstream.len() > envoy.upstream.len()
                && message.unwrap_or(&envoy.received.body).ends_with("remote refused stream reset");
            if there {
                tulle.clone_from(envoy);
            }
            there
        },
    },
    Kept {
        name: "codes of resets",
        reason: "an answer that its endpoint resets is reset with the same code, which says why; Envoy calls all of them an error \
                 of its own",
        forgive: |envoy, tulle| {
            let [theirs, ours] = [&mut *envoy, &mut *tulle].map(|outcome| {
                let cut = outcome.received.then == Then::CutShort;
                outcome
                    .received
                    .headers
                    .iter_mut()
                    .find(|(name, _)| cut && name == "reset")
                    .map(|(_, code)| code)
            });
            let (Some(theirs), Some(ours)) = (theirs, ours) else { return false };
            let there = theirs == INTERNAL_ERROR && theirs != ours;
            ours.clone_from(theirs);
            there
        },
    },
    Kept {
        name: "gRPC deadlines",
        reason: "gRPC: a call whose time is over ends with DEADLINE_EXCEEDED; Envoy calls the service unavailable",
        forgive: |envoy, tulle| {
            let over = |(name, message): &(String, String)| {
                name == "grpc-message" && message == "upstream request timeout"
            };
            if !envoy.received.headers.iter().any(over) {
                return false;
            }
            let [theirs, ours] = [&*envoy, &*tulle]
                .map(|outcome| outcome.received.headers.iter().position(|(name, _)| name == "grpc-status"));
            let (Some(theirs), Some(ours)) = (theirs, ours) else { return false };
            let theirs = &mut envoy.received.headers[theirs].1;
            let there = theirs == "14" && tulle.received.headers[ours].1 == "4";
            if there {
                *theirs = "4".into();
            }
            there
        },
    },
    Kept {
        name: "keys of WebSockets",
        reason: "RFC 6455, section 4.1: a server of HTTP/1.1 is asked with a key, and its client is told that it was read; HTTP/2 has \
                 neither (RFC 8441). Envoy passes on what there is",
        forgive: |envoy, tulle| {
            let pairs = envoy.upstream.iter_mut().zip(&mut tulle.upstream);
            let [mut there, mut told] = [false; 2];
            for ((_, theirs), (_, ours)) in pairs {
                let [asked, stream] = ["upgrade", "protocol"].map(|name| theirs.header(name) == "websocket");
                let without = asked && theirs.header("sec-websocket-key").is_empty();
                for seen in [theirs, ours] {
                    let before = seen.headers.len();
                    seen.headers.retain(|(name, _)| !(stream || without) || name != "sec-websocket-key");
                    there |= seen.headers.len() < before;
                }
                told |= stream;
            }
            (told && remove(tulle, "sec-websocket-accept")) || there
        },
    },
    Kept {
        name: "local replies",
        reason: "what the sidecar itself answers says why in words of its own, and in a Proxy-Status header (RFC 9209)",
        forgive: local_reply,
    },
    Kept {
        name: "when to come back",
        reason: "RFC 6585, section 4: a client that is told to wait may be told for how long",
        forgive: |envoy, tulle| {
            let own = envoy.received.status == tulle.received.status && tulle.upstream.is_empty();
            own && remove(tulle, "retry-after")
        },
    },
    Kept {
        name: "refused upgrades",
        reason: "RFC 9110, section 7.8: who does not switch answers as ever, and the connection takes another request; Envoy \
                 closes it, and leaves out the body of a 200",
        forgive: |envoy, tulle| {
            let asks = |seen: &Seen| ["upgrade", "protocol"].iter().any(|name| !seen.header(name).is_empty());
            let asked = envoy.upstream.first().is_some_and(|(_, seen)| asks(seen));
            let [theirs, ours] = [&envoy.received, &tulle.received];
            let there = asked
                && theirs.status == ours.status
                && theirs.status != 101
                && (theirs.then, ours.then) == (Then::Closed, Then::Kept);
            if there {
                envoy.received = tulle.received.clone();
            }
            there
        },
    },
    Kept {
        name: "connection options",
        reason: "RFC 9110, section 7.6.1: what is said of a connection is meant for the next hop; Envoy passes on all that an \
                 upgrade came with",
        forgive: |envoy, tulle| {
            let mut there = false;
            for ((_, theirs), (_, ours)) in envoy.upstream.iter_mut().zip(&tulle.upstream) {
                let field = theirs.headers.iter_mut().find(|(name, _)| name == "connection");
                if let Some((_, value)) =
                    field.filter(|(_, value)| ours.header("connection") == "upgrade" && value != "upgrade")
                    && value.split(',').any(|option| option.trim() == "upgrade")
                {
                    *value = "upgrade".into();
                    there = true;
                }
            }
            there
        },
    },
    Kept {
        name: "interim responses",
        reason: "RFC 9110, section 15.2: a proxy passes 1xx responses on; Envoy drops them",
        forgive: |envoy, tulle| {
            let there = envoy.received.interim.is_empty() && !tulle.received.interim.is_empty();
            tulle.received.interim.clear();
            envoy.received.interim.clear();
            there
        },
    },
    Kept {
        name: "nothing but slashes",
        reason: "several slashes are one also where nothing follows; Envoy leaves two",
        forgive: |envoy, tulle| {
            let mut there = false;
            for ((_, theirs), (_, ours)) in envoy.upstream.iter_mut().zip(&tulle.upstream) {
                there |= agree(&mut theirs.line, &ours.line, "GET //");
            }
            let ours = &tulle.received.headers;
            for (name, theirs) in &mut envoy.received.headers {
                if let Some((_, ours)) = ours.iter().find(|(own, _)| name == "location" && own == name) {
                    there |= agree(theirs, ours, "//");
                }
            }
            there
        },
    },
    Kept {
        name: "unread bodies",
        reason: "a connection is kept when the body of a request that the proxy answers itself is short; Envoy closes it",
        forgive: |envoy, tulle| {
            let early = envoy.upstream.is_empty() && envoy.received.then == Then::Closed;
            let there = early && tulle.received.then == Then::Kept && remove(envoy, "connection");
            if there {
                envoy.received.then = Then::Kept;
            }
            there
        },
    },
    Kept {
        name: "content type of texts",
        reason: "a text says its charset",
        forgive: |_, tulle| {
            let field = tulle.received.headers.iter_mut().find(|(name, _)| name == "content-type");
            let Some((_, value)) = field.filter(|(_, value)| value == "text/plain; charset=utf-8") else {
                return false;
            };
            *value = "text/plain".into();
            true
        },
    },
    Kept {
        name: "framing of nothing",
        reason: "a response to HEAD has the length that the one to GET would have, or says nothing; Envoy calls it chunked",
        forgive: |envoy, _| envoy.received.body.is_empty() && remove(envoy, "transfer-encoding"),
    },
    Kept {
        name: "usual ports in redirects",
        reason: "Gateway API: a Location does not tell the port that its scheme has anyway",
        forgive: |envoy, _| {
            let field = envoy.received.headers.iter_mut().find(|(name, _)| name == "location");
            let Some((_, location)) = field else { return false };
            let short = location.replacen(":80/", "/", usize::from(location.starts_with("http:")));
            let short = short.replacen(":443/", "/", usize::from(location.starts_with("https:")));
            let there = short != *location;
            *location = short;
            there
        },
    },
    Kept {
        name: "original path and host",
        reason: "what a request was before a rewrite is told in its span, not to the application",
        forgive: |envoy, _| forget(envoy, |name, _| name.starts_with("x-envoy-original-")),
    },
    Kept {
        name: "content-length of nothing",
        reason: "RFC 9110, section 8.6: a request whose method expects no body needs no length; Envoy adds one",
        forgive: |envoy, tulle| {
            let ours = tulle.upstream.iter().any(|(_, seen)| !seen.header("content-length").is_empty());
            !ours && forget(envoy, |name, value| name == "content-length" && value == "0")
        },
    },
    Kept {
        name: "time that is left",
        reason: "the next hop is told how much of a call's time is left, also where only the route limits it",
        forgive: |envoy, tulle| {
            let theirs = forget(envoy, |name, _| name == "grpc-timeout");
            forget(tulle, |name, _| name == "grpc-timeout") || theirs
        },
    },
    Kept {
        name: "count of attempts",
        reason: "a request that is a retry says so: along a chain of hops retries share one budget",
        forgive: |_, tulle| forget(tulle, |name, _| name == "x-envoy-attempt-count"),
    },
    Kept {
        name: "caches",
        reason: "Fetch standard: an answer that depends on the origin says so, that no cache gives it to another; Envoy's does not",
        forgive: |_, tulle| {
            let headers = &mut tulle.received.headers;
            let at = headers.iter().position(|(name, value)| name == "vary" && value == "Origin");
            at.map(|at| headers.remove(at)).is_some()
        },
    },
    Kept {
        name: "preflights",
        reason: "Fetch standard: the answer to a preflight request of a stranger says nothing, and no other has an empty list, or one of \
                 the headers that a page may read; Envoy's do",
        forgive: |envoy, tulle| {
            let own = envoy.upstream.is_empty() && tulle.upstream.is_empty() && envoy.received.status == 200;
            let allowed =
                envoy.received.headers.iter().any(|(name, _)| name == "access-control-allow-origin");
            let before = envoy.received.headers.len();
            let idle = |name: &str, value: &str| match allowed {
                true => {
                    name == "access-control-expose-headers"
                        || name.starts_with("access-control-") && value.is_empty()
                }
                false => name.starts_with("access-control-"),
            };
            envoy.received.headers.retain(|(name, value)| !(own && idle(name, value)));
            envoy.received.headers.len() < before
        },
    },
    Kept {
        name: "exposed headers",
        reason: "Fetch standard: where a page may send cookies, an asterisk is the name of a header, so all are named",
        forgive: |envoy, tulle| {
            let field = |outcome: &Outcome| {
                let headers = &outcome.received.headers;
                let at = headers.iter().position(|(name, _)| name == "access-control-expose-headers")?;
                Some((at, headers[at].1.clone()))
            };
            let (Some((at, theirs)), Some((_, ours))) = (field(envoy), field(tulle)) else { return false };
            let there = theirs == "*" && ours != "*";
            envoy.received.headers[at].1 = ours;
            there
        },
    },
    Kept {
        name: "marks of copies",
        reason: "a copy says of who sent it what its original does; Envoy adds an address of its own, as if of a client",
        forgive: |envoy, _| {
            let mut there = false;
            for (_, copy) in &mut envoy.upstream {
                if !copy.header("x-envoy-internal").is_empty() {
                    copy.headers
                        .retain(|(name, _)| !matches!(name.as_str(), "x-envoy-internal" | "x-forwarded-for"));
                    there = true;
                }
            }
            there
        },
    },
    Kept {
        name: "headers named by Connection",
        reason: "RFC 9110, section 7.6.1: they end with the hop, in responses too, where Envoy passes them on",
        forgive: |envoy, _| remove(envoy, "x-drop"),
    },
];

/// HTTP/2's code for a fault of who says it.
const INTERNAL_ERROR: &str = "2";

/// Envoy's own words for what it could not do.
const ENVOYS_WORDS: &[&str] = &[
    "stream timeout",
    "upstream connect error or disconnect/reset before headers",
    "upstream request timeout",
    "no healthy upstream",
    "Bad Request",
    "Upgrade Required",
    "RBAC: access denied",
    "local_rate_limited",
    "fault filter abort",
    "drop overload",
    "unconditional drop overload",
    "downstream duration timeout",
];

/// How often each difference that is meant so was met.
#[derive(Default)]
pub(crate) struct Tally {
    met: BTreeMap<&'static str, usize>,
    failures: String,
    failed: usize,
    cases: usize,
}

impl Tally {
    /// Compares the outcomes of a case.
    pub(crate) fn compare(&mut self, case: &dyn std::fmt::Display, outcomes: [Outcome; 2]) {
        self.cases += 1;
        let [mut envoy, mut tulle] = outcomes.clone();
        for kept in KEPT {
            if (kept.forgive)(&mut envoy, &mut tulle) {
                *self.met.entry(kept.name).or_default() += 1;
            }
        }
        if envoy == tulle {
            return;
        }
        self.failed += 1;
        // The first few say enough.
        if self.failed <= 10 {
            let [envoy, tulle] = outcomes;
            let _ = writeln!(self.failures, "{case}\n envoy\n{envoy} tulle\n{tulle}");
        }
    }

    /// Fails the test when anything differed that should not, or when a difference that is expected here was not there.
    pub(crate) fn end(self, expected: &[&str]) {
        let Self { met, failures, failed, cases } = self;
        println!("{cases} cases; differences that are meant so: {met:?}");
        assert!(failed == 0, "{failed} of {cases} cases differ\n{failures}");
        for name in expected {
            let kept = KEPT.iter().find(|kept| kept.name == *name).expect("it is one of them");
            assert!(met.contains_key(name), "nothing differs any more in {name:?} ({})", kept.reason);
        }
    }
}

/// Takes one of two slashes at the end of `beginning` from `theirs`, if `ours` has one less there, and nothing else differs.
fn agree(theirs: &mut String, ours: &str, beginning: &str) -> bool {
    let there = theirs.starts_with(beginning) && theirs.replacen("//", "/", 1) == ours;
    if there {
        ours.clone_into(theirs);
    }
    there
}

/// What a proxy answers by itself, where both do with the same status.
fn local_reply(envoy: &mut Outcome, tulle: &mut Outcome) -> bool {
    let own = tulle.received.headers.iter().any(|(name, _)| name == "proxy-status");
    let [theirs, ours] = [&envoy.received, &tulle.received];
    let message = theirs.headers.iter().find(|(name, _)| name == "grpc-message");
    let said = message.map_or(theirs.body.as_str(), |(_, message)| message.as_str());
    let known = said.is_empty() || ENVOYS_WORDS.iter().any(|words| said.starts_with(words));
    if !own || !known || theirs.status != ours.status {
        return false;
    }
    for outcome in [envoy, tulle] {
        for name in ["proxy-status", "content-length", "grpc-message"] {
            remove(outcome, name);
        }
        // To gRPC the type says what kind of answer it is; else only what the text is.
        outcome
            .received
            .headers
            .retain(|(name, value)| name != "content-type" || value.starts_with("application/grpc"));
        outcome.received.body.clear();
    }
    true
}

/// Removes headers of the requests that reached the upstream, and says whether there were any.
fn forget(outcome: &mut Outcome, header: impl Fn(&str, &str) -> bool) -> bool {
    let mut there = false;
    for (_, seen) in &mut outcome.upstream {
        seen.headers.retain(|(name, value)| {
            let which = header(name, value);
            there |= which;
            !which
        });
    }
    there
}

/// Removes a header of the response, and says whether it was there.
fn remove(outcome: &mut Outcome, name: &str) -> bool {
    let headers = &mut outcome.received.headers;
    let before = headers.len();
    headers.retain(|(field, _)| field != name);
    headers.len() < before
}
