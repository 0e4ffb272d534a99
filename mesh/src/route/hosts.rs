//! From the host name of a request to a virtual host, by Envoy's order: an exact domain, the longest suffix, the
//! longest prefix, `*`.

use std::cmp::Ordering;

use crate::model::{Domain, VirtualHost};

/// A domain of a virtual host, both by their place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DomainAt {
    pub(super) virtual_host: usize,
    pub(super) domain: usize,
}

/// Two virtual hosts, or one of them twice, claim a domain.
pub(super) struct Duplicate {
    pub(super) first: DomainAt,
    pub(super) second: DomainAt,
}

#[derive(Debug)]
pub(super) struct HostIndex {
    /// In byte order.
    exact: Vec<(Box<str>, DomainAt)>,
    /// Longest first. They are tried in turn: configurations have a handful of them at most.
    suffixes: Vec<(Box<str>, DomainAt)>,
    /// Longest first.
    prefixes: Vec<(Box<str>, DomainAt)>,
    any: Option<DomainAt>,
}

impl HostIndex {
    pub(super) fn build(virtual_hosts: &[VirtualHost]) -> Result<Self, Duplicate> {
        let mut index = Self { exact: Vec::new(), suffixes: Vec::new(), prefixes: Vec::new(), any: None };
        for (virtual_host, host) in virtual_hosts.iter().enumerate() {
            for (domain, pattern) in host.domains.iter().enumerate() {
                let at = DomainAt { virtual_host, domain };
                let lower = |text: &str| (text.to_ascii_lowercase().into_boxed_str(), at);
                match pattern {
                    Domain::Exact(text) => index.exact.push(lower(text)),
                    Domain::Suffix(text) => index.suffixes.push(lower(text)),
                    Domain::Prefix(text) => index.prefixes.push(lower(text)),
                    Domain::Any => match index.any {
                        Some(first) => return Err(Duplicate { first, second: at }),
                        None => index.any = Some(at),
                    },
                }
            }
        }
        index.exact.sort_by(|(a, _), (b, _)| a.cmp(b));
        let longest_first = |a: &str, b: &str| b.len().cmp(&a.len()).then_with(|| a.cmp(b));
        index.suffixes.sort_by(|(a, _), (b, _)| longest_first(a, b));
        index.prefixes.sort_by(|(a, _), (b, _)| longest_first(a, b));
        for list in [&index.exact, &index.suffixes, &index.prefixes] {
            if let Some(pair) = list.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(Duplicate { first: pair[0].1, second: pair[1].1 });
            }
        }
        Ok(index)
    }

    /// The best domain for `host` or `host:port`. Each kind of domain is tried with the authority as it was given, then
    /// without its port, then without the dot that ends an absolute name, before a weaker kind is: `cart.shop` is a
    /// better answer to `cart.shop:80` than `cart.*`.
    pub(super) fn find(&self, authority: &str) -> Option<DomainAt> {
        let bare = without_port(authority);
        let relative = bare.unwrap_or(authority).strip_suffix('.');
        let given = [Some(authority), bare, relative];
        let hosts = || given.into_iter().flatten();
        hosts()
            .find_map(|host| self.exact(host))
            .or_else(|| hosts().find_map(|host| self.suffix(host)))
            .or_else(|| hosts().find_map(|host| self.prefix(host)))
            .or(self.any)
    }

    fn exact(&self, host: &str) -> Option<DomainAt> {
        let found = self.exact.binary_search_by(|(domain, _)| compare_lower(domain, host)).ok()?;
        Some(self.exact[found].1)
    }

    fn suffix(&self, host: &str) -> Option<DomainAt> {
        let matches = |suffix: &str| {
            let start = host.len().checked_sub(suffix.len()).filter(|start| *start > 0);
            start.is_some_and(|start| host.as_bytes()[start..].eq_ignore_ascii_case(suffix.as_bytes()))
        };
        self.suffixes.iter().find(|(suffix, _)| matches(suffix)).map(|(_, at)| *at)
    }

    fn prefix(&self, host: &str) -> Option<DomainAt> {
        let matches = |prefix: &str| {
            host.len() > prefix.len()
                && host.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
        };
        self.prefixes.iter().find(|(prefix, _)| matches(prefix)).map(|(_, at)| *at)
    }
}

/// The host of `host:port`, or `None` where there is no port. An IPv6 address has a port only behind brackets.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    let is_host = !host.is_empty() && (host.ends_with(']') || !host.contains(':'));
    (is_host && port.bytes().all(|b| b.is_ascii_digit())).then_some(host)
}

/// Compares a domain in lower case with a host in any case.
fn compare_lower(domain: &str, host: &str) -> Ordering {
    domain.bytes().cmp(host.bytes().map(|b| b.to_ascii_lowercase()))
}
