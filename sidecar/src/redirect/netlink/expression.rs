//! Rules and sets in the kernel's own terms (`linux/netfilter/nf_tables.h`): a rule is a list of expressions, which load
//! a value into register 1, compare it there, and end the rule where it differs. They are those that `nft` makes of the
//! same rule, in the same order, so that it can show them.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv6Net};

use super::message::Attributes;
use crate::redirect::options::PortList;
use crate::redirect::rules::{Action, Elements, Family, Match, Protocol};

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;

/// `enum nft_meta_keys`.
const META_OUTPUT_NAME: u32 = 7;
const META_USER: u32 = 10;
const META_GROUP: u32 = 11;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// The place of the port of destination in the headers of TCP and UDP.
const DESTINATION_PORT: u32 = 2;

/// The place of the flags in the header of TCP, and the flags.
const TCP_FLAGS: u32 = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const LOCAL_ADDRESS: u32 = 2;

const VERDICT_GOTO: i32 = -4;
const VERDICT_RETURN: i32 = -5;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// The longest name of an interface, with a zero byte (`IFNAMSIZ`).
const NAME_LENGTH: usize = 16;

/// The expressions of a rule, as elements of a list.
pub(super) fn rule(list: &mut Attributes<'_>, matches: &[Match], action: Action) {
    for matching in matches {
        condition(list, *matching);
    }
    match action {
        Action::Return => verdict(list, VERDICT_RETURN, None),
        Action::Goto(chain) => verdict(list, VERDICT_GOTO, Some(chain)),
        Action::Redirect(port) => {
            expression(list, "immediate", |data| {
                data.number(1, REGISTER);
                data.nested(2, |value| value.bytes(DATA_VALUE, &port.to_be_bytes()));
            });
            expression(list, "redir", |data| data.number(1, REGISTER));
        }
    }
}

fn condition(list: &mut Attributes<'_>, matching: Match) {
    match matching {
        Match::Protocol(protocol) => transport(list, protocol),
        Match::OpensTcp => {
            transport(list, Protocol::Tcp);
            load(list, TRANSPORT_HEADER, TCP_FLAGS, 1);
            expression(list, "bitwise", |data| {
                data.number(1, REGISTER);
                data.number(2, REGISTER);
                data.number(3, 1);
                data.nested(4, |mask| mask.bytes(DATA_VALUE, &[FIN | SYN | RST | ACK]));
                data.nested(5, |flip| flip.bytes(DATA_VALUE, &[0]));
            });
            compare(list, EQUAL, &[SYN]);
        }
        Match::NotToThisHost => {
            expression(list, "fib", |data| {
                data.number(1, REGISTER);
                data.number(2, FIB_ADDRESS_TYPE);
                data.number(3, FIB_DESTINATION);
            });
            compare(list, NOT_EQUAL, &LOCAL_ADDRESS.to_ne_bytes());
        }
        Match::Port(protocol, port) => {
            transport(list, protocol);
            load(list, TRANSPORT_HEADER, DESTINATION_PORT, 2);
            compare(list, EQUAL, &port.to_be_bytes());
        }
        Match::PortIn(set) => {
            transport(list, Protocol::Tcp);
            load(list, TRANSPORT_HEADER, DESTINATION_PORT, 2);
            lookup(list, set);
        }
        Match::Destination(IpAddr::V4(ip)) => {
            address(list, Family::V4, true);
            compare(list, EQUAL, &ip.octets());
        }
        Match::Destination(IpAddr::V6(ip)) => {
            address(list, Family::V6, true);
            compare(list, EQUAL, &ip.octets());
        }
        Match::DestinationIn(family, set) => {
            address(list, family, true);
            lookup(list, set);
        }
        Match::SourceIn(family, set) => {
            address(list, family, false);
            lookup(list, set);
        }
        Match::User(uid) => meta(list, META_USER, &uid.to_ne_bytes()),
        Match::Group(gid) => meta(list, META_GROUP, &gid.to_ne_bytes()),
        Match::ThroughLoopback => {
            let mut name = [0; NAME_LENGTH];
            name[..2].copy_from_slice(b"lo");
            meta(list, META_OUTPUT_NAME, &name);
        }
    }
}

fn transport(list: &mut Attributes<'_>, protocol: Protocol) {
    let number = match protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    meta(list, META_PROTOCOL, &[number]);
}

/// Loads the destination or the source.
fn address(list: &mut Attributes<'_>, family: Family, destination: bool) {
    let (number, place, length) = match (family, destination) {
        (Family::V4, false) => (NFPROTO_IPV4, 12, 4),
        (Family::V4, true) => (NFPROTO_IPV4, 16, 4),
        (Family::V6, false) => (NFPROTO_IPV6, 8, 16),
        (Family::V6, true) => (NFPROTO_IPV6, 24, 16),
    };
    meta(list, META_FAMILY, &[number]);
    load(list, NETWORK_HEADER, place, length);
}

fn meta(list: &mut Attributes<'_>, key: u32, value: &[u8]) {
    expression(list, "meta", |data| {
        data.number(1, REGISTER);
        data.number(2, key);
    });
    compare(list, EQUAL, value);
}

fn load(list: &mut Attributes<'_>, header: u32, place: u32, length: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        data.number(2, header);
        data.number(3, place);
        data.number(4, length);
    });
}

fn compare(list: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, operator);
        data.nested(3, |operand| operand.bytes(DATA_VALUE, value));
    });
}

fn lookup(list: &mut Attributes<'_>, set: &str) {
    expression(list, "lookup", |data| {
        data.text(1, set);
        data.number(2, REGISTER);
    });
}

fn verdict(list: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    expression(list, "immediate", |data| {
        data.number(1, VERDICT_REGISTER);
        data.nested(2, |value| {
            value.nested(DATA_VERDICT, |verdict| {
                verdict.number(1, code.cast_unsigned());
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        });
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    list.nested(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name);
        element.nested(EXPRESSION_DATA, data);
    });
}

/// The number by which `nft` knows the type of a set's elements, and their length in bytes.
pub(super) fn element_type(elements: &Elements) -> (u32, u32) {
    match elements {
        Elements::Ports(_) => (13, 2),
        Elements::V4(_) => (7, 4),
        Elements::V6(_) => (8, 16),
    }
}

/// The elements of a set of intervals, as elements of a list: where each starts, and where it is over.
pub(super) fn elements(list: &mut Attributes<'_>, elements: &Elements) {
    match elements {
        Elements::Ports(ports) => port_elements(list, ports),
        Elements::V4(nets) => nets.iter().for_each(|net| v4_elements(list, net)),
        Elements::V6(nets) => nets.iter().for_each(|net| v6_elements(list, net)),
    }
}

fn port_elements(list: &mut Attributes<'_>, ports: &PortList) {
    let interval = |range: &RangeInclusive<u16>| (*range.start(), range.end().checked_add(1));
    for (start, end) in ports.ranges().iter().map(interval) {
        boundaries(list, &start.to_be_bytes(), end.map(u16::to_be_bytes));
    }
}

fn v4_elements(list: &mut Attributes<'_>, net: &Ipv4Net) {
    let end = net.broadcast().to_bits().checked_add(1);
    boundaries(list, &net.network().octets(), end.map(u32::to_be_bytes));
}

fn v6_elements(list: &mut Attributes<'_>, net: &Ipv6Net) {
    let end = net.broadcast().to_bits().checked_add(1);
    boundaries(list, &net.network().octets(), end.map(u128::to_be_bytes));
}

/// An interval that reaches to the greatest value has no end.
fn boundaries<const N: usize>(list: &mut Attributes<'_>, start: &[u8; N], end: Option<[u8; N]>) {
    const KEY: u16 = 1;
    const FLAGS: u16 = 3;
    const INTERVAL_END: u32 = 1;
    list.nested(LIST_ELEMENT, |element| element.nested(KEY, |key| key.bytes(DATA_VALUE, start)));
    if let Some(end) = end {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(KEY, |key| key.bytes(DATA_VALUE, &end));
            element.number(FLAGS, INTERVAL_END);
        });
    }
}
