//! The rules, told to the kernel over netlink: one datagram, which is carried out whole or not at all.
//!
//! In: the rules. Out: the table `inet tulle` in the network namespace of the process, in place of the one that was
//! there. Other tables are never touched, and no program is run. It takes CAP_NET_ADMIN.

mod dump;
mod expression;
mod message;

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use self::message::{Attributes, Batch, Failure, Kind};
use super::rules::{Chain, Hook, Rule, Ruleset, Set, TABLE};

/// Puts the rules in place of those that are there.
///
/// # Errors
/// When the kernel refuses; nothing is changed then.
pub(super) fn apply(rules: &Ruleset) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    replace_table(&mut batch);
    batch.add(Kind::NewTable, "the table".into(), name_table);
    for (id, set) in (1..).zip(&rules.sets) {
        add_set(&mut batch, id, set);
    }
    // All chains before the first rule: rules go to other chains.
    for chain in &rules.chains {
        add_chain(&mut batch, chain);
    }
    for chain in &rules.chains {
        for rule in &chain.rules {
            add_rule(&mut batch, chain.name, rule);
        }
    }
    transact(batch)
}

/// Removes the rules, if there are any.
///
/// # Errors
/// When the kernel refuses; nothing is changed then.
pub(super) fn remove() -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    replace_table(&mut batch);
    transact(batch)
}

/// Whether the kernel has as many rules of ours, in each chain, as these are. What each says is not compared: nobody but
/// this module writes in that table.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn is_in_place(rules: &Ruleset) -> Result<bool, NetlinkError> {
    let there = dump::rules(TABLE)?;
    Ok(rules.chains.iter().all(|chain| there.get(chain.name) == Some(&chain.rules.len())))
}

/// Asks the kernel whether it has nftables for the caller at all.
///
/// # Errors
/// When not, and why.
pub(super) fn is_supported() -> Result<(), NetlinkError> {
    dump::rules(TABLE).map(drop)
}

/// Only a table that is there can be deleted, and one that is there can be added again.
fn replace_table(batch: &mut Batch) {
    batch.add(Kind::NewTable, "the table".into(), name_table);
    batch.add(Kind::DeleteTable, "the old table".into(), name_table);
}

fn name_table(message: &mut Attributes<'_>) {
    message.text(1, TABLE);
}

fn add_set(batch: &mut Batch, id: u32, set: &Set) {
    const INTERVAL: u32 = 4;
    let (kind, length) = expression::element_type(&set.elements);
    batch.add(Kind::NewSet, format!("the set {}", set.name), |message| {
        message.text(1, TABLE);
        message.text(2, set.name);
        message.number(3, INTERVAL);
        message.number(4, kind);
        message.number(5, length);
        message.number(10, id);
    });
    if set.elements.is_empty() {
        return;
    }
    batch.add(Kind::NewElements, format!("the elements of {}", set.name), |message| {
        message.text(1, TABLE);
        message.text(2, set.name);
        message.nested(3, |list| expression::elements(list, &set.elements));
    });
}

fn add_chain(batch: &mut Batch, chain: &Chain) {
    const ACCEPT: u32 = 1;
    batch.add(Kind::NewChain, format!("the chain {}", chain.name), |message| {
        message.text(1, TABLE);
        message.text(3, chain.name);
        if let Some(base) = chain.base {
            let hook = match base.hook {
                Hook::Prerouting => 0,
                Hook::Output => 3,
            };
            message.nested(4, |place| {
                place.number(1, hook);
                place.number(2, base.priority.cast_unsigned());
            });
            message.number(5, ACCEPT);
            message.text(7, "nat");
        }
    });
}

fn add_rule(batch: &mut Batch, chain: &str, rule: &Rule) {
    batch.add(Kind::NewRule, format!("the rule `{rule}` of {chain}"), |message| {
        message.text(1, TABLE);
        message.text(2, chain);
        message.nested(4, |list| expression::rule(list, &rule.matches, rule.action));
        // As nft keeps comments: type 0, the length, and a text that ends with a zero byte.
        let length = u8::try_from(rule.comment.len() + 1).expect("comments are shorter than 255 bytes");
        message.bytes(7, &[&[0, length], rule.comment.as_bytes(), &[0]].concat());
    });
}

/// The longest wait for the kernel, which answers before the call that sends is over.
const PATIENCE: Duration = Duration::from_secs(10);

/// Larger than any answer: an answer to a message holds the message.
const ANSWER: usize = 1 << 17;

fn transact(batch: Batch) -> Result<(), NetlinkError> {
    let (datagram, mut answers) = batch.finish();
    let mut kernel = Netlink::connect()?;
    kernel.send(&datagram)?;
    loop {
        if let Some(outcome) = answers.read(kernel.receive()?) {
            return outcome.map_err(|Failure { label, errno }| NetlinkError::Refused { label, errno });
        }
    }
}

/// A socket to the kernel's netfilter.
struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netlink {
    fn connect() -> Result<Self, NetlinkError> {
        const AF_NETLINK: i32 = 16;
        const NETLINK_NETFILTER: i32 = 12;
        let kind = (Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)));
        let socket = Socket::new(kind.0, kind.1, kind.2).map_err(NetlinkError::Socket)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(NetlinkError::Exchange)?;
        Ok(Self { socket, buffer: vec![0; ANSWER] })
    }

    fn send(&self, datagram: &[u8]) -> Result<(), NetlinkError> {
        // The kernel gives a socket that sends without an address one, and is itself the default peer.
        let sent = self.socket.send(datagram).map_err(NetlinkError::Exchange)?;
        if sent < datagram.len() {
            return Err(NetlinkError::Exchange(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<&[u8], NetlinkError> {
        let length = self.socket.read(&mut self.buffer).map_err(NetlinkError::Exchange)?;
        Ok(&self.buffer[..length])
    }
}

/// Why the kernel has no rules of ours.
#[derive(Debug)]
pub enum NetlinkError {
    /// There is no netlink socket for netfilter.
    Socket(io::Error),
    /// The datagram or the answer did not get through.
    Exchange(io::Error),
    /// The kernel refused.
    Refused {
        /// What it refused.
        label: String,
        /// The error's number.
        errno: i32,
    },
}

impl NetlinkError {
    /// Whether the kernel has no nftables.
    pub(super) fn is_unsupported(&self) -> bool {
        match self {
            Self::Socket(error) => error.raw_os_error() == Some(EPROTONOSUPPORT),
            Self::Exchange(error) => error.raw_os_error() == Some(ECONNREFUSED),
            Self::Refused { errno, .. } => matches!(*errno, EOPNOTSUPP | EAFNOSUPPORT | ENOENT),
        }
    }
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EPROTONOSUPPORT: i32 = 93;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;
const ECONNREFUSED: i32 = 111;

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Refused { errno: EPERM, .. } => {
                return f.write_str(
                    "CAP_NET_ADMIN is missing: the kernel lets only who has it change rules; run it as root, or add \
                     NET_ADMIN to the container's securityContext.capabilities.add",
                );
            }
            Self::Socket(error) => format!("no netlink socket for netfilter: {error}"),
            Self::Exchange(error) => format!("the kernel does not answer over netlink: {error}"),
            Self::Refused { label, errno } => {
                format!("the kernel refuses {label}: {}", io::Error::from_raw_os_error(*errno))
            }
        };
        f.write_str(&error)?;
        if self.is_unsupported() {
            f.write_str(
                "; nftables with translation in the family inet takes Linux 5.2: try --mode iptables",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_can_not_is_told_from_one_that_will_not() {
        let refused = |errno| NetlinkError::Refused { label: "the chain output".into(), errno };
        let can_not = [
            NetlinkError::Socket(io::Error::from_raw_os_error(EPROTONOSUPPORT)),
            NetlinkError::Exchange(io::Error::from_raw_os_error(ECONNREFUSED)),
            refused(EOPNOTSUPP),
            refused(EAFNOSUPPORT),
            refused(ENOENT),
        ];
        for error in can_not {
            assert!(error.is_unsupported(), "{error:?}");
            assert!(error.to_string().ends_with("try --mode iptables"), "{error}");
        }
        const EBUSY: i32 = 16;
        for error in [refused(EPERM), refused(EBUSY), NetlinkError::Exchange(io::ErrorKind::TimedOut.into())]
        {
            assert!(!error.is_unsupported(), "{error:?}");
            assert!(!error.to_string().contains("iptables"), "{error}");
        }
        assert!(refused(EBUSY).to_string().contains("refuses the chain output: Device or resource busy"));
        assert!(refused(EPERM).to_string().contains("CAP_NET_ADMIN"));
    }
}
