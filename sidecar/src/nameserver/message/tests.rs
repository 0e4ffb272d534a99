use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

#[test]
fn a_query_is_read_with_what_it_says_of_itself() {
    let query = Query::parse(&question("WWW.Example.com.", RecordType::AAAA)).expect("valid");
    assert_eq!(query.name.as_deref(), Some("www.example.com"));
    assert_eq!((query.kind, query.class, query.edns, query.special), (28, 1, None, false));
    assert_eq!(query.udp_limit(), 512);

    let mut message = asked("a.example.", RecordType::A);
    message.set_edns(edns(1232, true));
    let query = Query::parse(&message.to_vec().expect("encodes")).expect("valid");
    assert_eq!(query.edns, Some(Edns { size: 1232, version: 0, dnssec: true }));
    assert_eq!(query.udp_limit(), 1232);
    assert!(!query.special);
    for (size, limit) in [(0, 512), (511, 512), (4096, 4096), (65535, 4096)] {
        message.set_edns(edns(size, false));
        let query = Query::parse(&message.to_vec().expect("encodes")).expect("valid");
        assert_eq!(query.udp_limit(), limit, "{size}");
    }
    let other_case = Query::parse(&question("www.EXAMPLE.com.", RecordType::AAAA)).expect("valid");
    let same = Query::parse(&question("www.example.com.", RecordType::AAAA)).expect("valid");
    assert_eq!(other_case.key(), same.key());
    assert_ne!(same.key(), Query::parse(&question("www.example.com.", RecordType::A)).expect("valid").key());
    // A name that no host has is nobody's of the mesh.
    let mut odd = question("abc.example.", RecordType::A);
    odd[14] = b'.';
    assert_eq!(Query::parse(&odd).expect("valid").name, None);
}

#[test]
fn what_is_no_good_query_is_refused_or_left_alone() {
    let good = question("a.example.", RecordType::A);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    for (bytes, error, code) in [
        (Vec::new(), QueryError::Ignore, None),
        (good[..11].to_vec(), QueryError::Ignore, None),
        // An answer to an answer would be the beginning of an endless conversation.
        (changed(2, 0x80), QueryError::Ignore, None),
        (changed(2, 5 << 3), QueryError::NotImplemented, Some(4)),
        (good[..12].to_vec(), QueryError::Format, Some(1)),
        (changed(5, 0), QueryError::Format, Some(1)),
        (changed(5, 2), QueryError::Format, Some(1)),
        (changed(7, 1), QueryError::Format, Some(1)),
        (changed(11, 1), QueryError::Format, Some(1)),
        // A pointer in a question, and a label beyond the end.
        (changed(12, 0xc0), QueryError::Format, Some(1)),
        (changed(12, 63), QueryError::Format, Some(1)),
        ([&good[..], &[0]].concat(), QueryError::Format, Some(1)),
    ] {
        assert_eq!(Query::parse(&bytes), Err(error), "{bytes:?}");
        let answer = refuse(&bytes, error);
        assert_eq!(answer.as_ref().map(|answer| answer[3] & 0x0f), code);
        if let Some(answer) = answer {
            assert_eq!(answer[..2], bytes[..2]);
            assert_eq!(answer[2] & 0x80, 0x80);
        }
    }
}

#[test]
fn an_answer_says_how_long_it_may_be_kept() {
    let query = Query::parse(&question("a.example.", RecordType::A)).expect("valid");
    let outline = |change: fn(&mut Message)| {
        let mut message = asked("A.Example.", RecordType::A);
        message.metadata.message_type = MessageType::Response;
        change(&mut message);
        let bytes = message.to_vec().expect("encodes");
        Outline::read(&bytes, &query)
    };
    let lifetime = |change: fn(&mut Message)| {
        outline(change).expect("an answer").lifetime.map(|lifetime| lifetime.as_secs())
    };
    assert_eq!(lifetime(|m| _ = m.add_answer(address("a.example.", 60))), Some(60));
    let chain = |m: &mut Message| {
        m.add_answer(Record::from_rdata(name("a.example."), 7, RData::CNAME(CNAME(name("b.example.")))));
        m.add_answer(address("b.example.", 60));
    };
    assert_eq!(lifetime(chain), Some(7));
    assert_eq!(lifetime(|m| _ = m.add_answer(address("a.example.", 0))), None);
    assert_eq!(lifetime(|m| _ = m.add_answer(address("a.example.", 1 << 31))), None);
    // Without records, and without an SOA that says for how long that holds.
    assert_eq!(lifetime(|_| {}), None);
    assert_eq!(lifetime(|m| m.metadata.response_code = ResponseCode::NXDomain), None);
    let absent = |m: &mut Message| {
        m.metadata.response_code = ResponseCode::NXDomain;
        m.add_authority(soa(900, 30));
    };
    assert_eq!(lifetime(absent), Some(30));
    assert_eq!(lifetime(|m| _ = m.add_authority(soa(20, 30))), Some(20));
    let failed = |m: &mut Message| {
        m.metadata.response_code = ResponseCode::ServFail;
        m.add_authority(soa(20, 30));
    };
    assert_eq!(lifetime(failed), None);
    let cut = |m: &mut Message| {
        m.metadata.truncation = true;
        m.add_answer(address("a.example.", 60));
    };
    assert_eq!(lifetime(cut), None);

    // The answer to something else, and no answer at all.
    assert_eq!(outline(|m| m.queries[0] = Asked::query(name("b.example."), RecordType::A)), None);
    assert_eq!(outline(|m| m.queries[0] = Asked::query(name("a.example."), RecordType::AAAA)), None);
    assert_eq!(outline(|m| m.metadata.message_type = MessageType::Query), None);
}

#[test]
fn a_kept_answer_is_made_that_of_another_query() {
    let first = Query::parse(&question("a.example.", RecordType::A)).expect("valid");
    let mut message = asked("a.example.", RecordType::A);
    message.metadata.message_type = MessageType::Response;
    message.add_answer(address("a.example.", 60)).add_answer(address("a.example.", 5));
    message.set_edns(edns(1232, false));
    let mut bytes = message.to_vec().expect("encodes");
    let outline = Outline::read(&bytes, &first).expect("an answer");
    assert_eq!(outline.ttls.len(), 2, "an OPT record has no TTL");

    let mut later = question("A.eXample.", RecordType::A);
    later[..2].copy_from_slice(&[7, 8]);
    let later = Query::parse(&later).expect("valid");
    revive(&mut bytes, &outline.ttls, 10, &later);
    let message = Message::from_vec(&bytes).expect("an answer");
    assert_eq!(message.metadata.id, 0x0708);
    assert_eq!(message.queries[0].name().to_string(), "A.eXample.");
    let ttls: Vec<u32> = message.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [50, 0]);

    let cut = Message::from_vec(&later.truncated(&bytes)).expect("an answer");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!((cut.metadata.id, cut.queries.len()), (0x0708, 1));
    let failure = Message::from_vec(&later.failure(rcode::SERVER_FAILURE)).expect("an answer");
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
}

proptest! {
    #[test]
    fn no_message_is_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), age in any::<u32>()) {
        let query = Query::parse(&question("a.example.", RecordType::A)).expect("valid");
        for question_too in [false, true] {
            if question_too && bytes.len() >= query.bytes.len() {
                bytes[2..query.bytes.len()].copy_from_slice(&query.bytes[2..]);
                bytes[2] |= 0x80;
                bytes[7] = 40;
            }
            match Query::parse(&bytes) {
                Ok(parsed) => {
                    let _ = (parsed.failure(2), parsed.key());
                }
                Err(error) => {
                    let _ = refuse(&bytes, error);
                }
            }
            if let Some(outline) = Outline::read(&bytes, &query) {
                revive(&mut bytes.clone(), &outline.ttls, age, &query);
            }
        }
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn asked(of: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x0102, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(name(of), kind));
    message
}

fn question(of: &str, kind: RecordType) -> Vec<u8> {
    asked(of, kind).to_vec().expect("encodes")
}

fn edns(size: u16, dnssec: bool) -> hickory_resolver::proto::op::Edns {
    let mut edns = hickory_resolver::proto::op::Edns::new();
    edns.set_max_payload(size).set_dnssec_ok(dnssec);
    edns
}

fn address(of: &str, ttl: u32) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A::new(192, 0, 2, 1)))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("admin.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(data))
}
