//! Answers for the mesh's own names.
//!
//! In: what is asked, and what the control plane says of the name. Out: an answer that is authoritative for as long as all
//! of it is the mesh's. A name without records of the type that is asked for has an empty answer, and never "there is no
//! such name": a client that asks for AAAA first would not ask for A (RFC 4074, section 4.2).

use std::net::IpAddr;

use hickory_resolver::proto::op::{self, Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};
use tulle_mesh::model::{DnsName, DnsRecords};

use super::message::{OWN_SIZE, Query, rcode};

/// How many names may stand for one another before the last.
const MAX_ALIASES: usize = 8;

/// How long it holds that the mesh does not have a name, or not a record: briefly, since it may have it any moment.
const ABSENCE: u32 = 5;

/// An answer in the making.
pub(super) struct Answer<'a> {
    query: &'a Query,
    domain: &'a str,
    kind: RecordType,
    message: Message,
    /// The name that the next records are of.
    owner: Name,
    aliases: usize,
    /// It has records that are asked for.
    answered: bool,
    /// No answer can be made.
    broken: bool,
}

impl<'a> Answer<'a> {
    /// Of nothing yet. `domain` is the end of the mesh's names.
    pub(super) fn new(query: &'a Query, domain: &'a str) -> Self {
        let [high, low] = query.id();
        let mut message = Message::new(u16::from_be_bytes([high, low]), MessageType::Response, OpCode::Query);
        message.metadata.authoritative = true;
        message.metadata.recursion_desired = query.wants_recursion();
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = query.disables_checking();
        if let Some(edns) = query.edns {
            let mut own = Edns::new();
            own.set_max_payload(OWN_SIZE).set_dnssec_ok(edns.dnssec);
            message.set_edns(own);
        }
        let question = op::Query::read(&mut BinDecoder::new(query.question()));
        let broken = question.is_err();
        let question = question.unwrap_or_default();
        let owner = question.name().clone();
        message.add_query(question);
        let kind = RecordType::from(query.kind);
        Self { query, domain, kind, message, owner, aliases: 0, answered: false, broken }
    }

    /// Adds what a name means. Returns the name that it stands for, where that has to be looked up too.
    pub(super) fn add(&mut self, name: &DnsName) -> Option<String> {
        let ttl = u32::try_from(name.ttl.as_secs()).unwrap_or(u32::MAX >> 1);
        match &name.records {
            DnsRecords::Addresses(addresses) => {
                let mut addresses = addresses.clone();
                if addresses.len() > 2 {
                    // Clients that take the first one take different ones.
                    fastrand::shuffle(&mut addresses);
                }
                for address in addresses {
                    match address {
                        IpAddr::V4(ip) => self.record(RecordType::A, ttl, RData::A(A(ip))),
                        IpAddr::V6(ip) => self.record(RecordType::AAAA, ttl, RData::AAAA(AAAA(ip))),
                    }
                }
                None
            }
            DnsRecords::Services(targets) => {
                for target in targets {
                    let Some(host) = whole_name(&target.host) else { continue };
                    let record = SRV::new(target.priority, target.weight, target.port, host);
                    self.record(RecordType::SRV, ttl, RData::SRV(record));
                }
                None
            }
            DnsRecords::Alias(host) => {
                self.aliases += 1;
                let target = whole_name(host).filter(|_| self.aliases <= MAX_ALIASES);
                let Some(target) = target else {
                    self.broken = true;
                    return None;
                };
                let owner = std::mem::replace(&mut self.owner, target.clone());
                self.message.add_answer(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target))));
                self.answered |= self.kind == RecordType::CNAME;
                (self.kind != RecordType::CNAME).then(|| host.clone())
            }
        }
    }

    fn record(&mut self, kind: RecordType, ttl: u32, data: RData) {
        if self.kind == kind || self.kind == RecordType::ANY {
            self.answered = true;
            self.message.add_answer(Record::from_rdata(self.owner.clone(), ttl, data));
        }
    }

    /// All of it is the mesh's.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if !self.answered {
            self.add_absence();
        }
        self.encode()
    }

    /// The mesh has no such name.
    pub(super) fn finish_absent(mut self) -> Vec<u8> {
        self.message.metadata.response_code = ResponseCode::NXDomain;
        self.add_absence();
        self.encode()
    }

    /// The rest is what another name server has answered for the name that this one stands for.
    pub(super) fn finish_with(mut self, found: &[u8]) -> Vec<u8> {
        let Ok(found) = Message::from_vec(found) else { return self.query.failure(rcode::SERVER_FAILURE) };
        self.message.metadata.authoritative = false;
        self.message.metadata.response_code = found.metadata.response_code;
        self.message.add_answers(found.answers);
        self.message.add_authorities(found.authorities);
        self.encode()
    }

    /// For how long the absence may be remembered (RFC 2308).
    fn add_absence(&mut self) {
        let below = self.query.name.as_deref().is_some_and(|name| {
            name.strip_suffix(self.domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        // A short name is a zone of its own: nothing is said of others.
        let zone = match whole_name(self.domain).filter(|_| below) {
            Some(zone) => zone,
            None => self.message.queries.first().map(|query| query.name().clone()).unwrap_or_default(),
        };
        let named = |host: &str| whole_name(&format!("{host}.{}", self.domain)).unwrap_or_default();
        let soa = SOA::new(named("ns.dns"), named("hostmaster"), 1, 7200, 1800, 86_400, ABSENCE);
        self.message.add_authority(Record::from_rdata(zone, ABSENCE, RData::SOA(soa)));
    }

    fn encode(self) -> Vec<u8> {
        match self.message.to_vec() {
            Ok(bytes) if !self.broken && bytes.len() <= usize::from(u16::MAX) => bytes,
            _ => self.query.failure(rcode::SERVER_FAILURE),
        }
    }
}

/// The mesh has no such name.
pub(super) fn absent(query: &Query, domain: &str) -> Vec<u8> {
    Answer::new(query, domain).finish_absent()
}

/// What to ask other name servers for the name that `query`'s stands for.
pub(super) fn query_for(name: &str, query: &Query) -> Option<Query> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(op::Query::query(whole_name(name)?, RecordType::from(query.kind)));
    Query::parse(&message.to_vec().ok()?).ok()
}

fn whole_name(name: &str) -> Option<Name> {
    let mut name = Name::from_labels(name.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}
