//! The rules for kernels without nftables: the same, in the syntax of `iptables-restore`, and by that program.
//!
//! In: the rules. Out: chains `TULLE_*` in the tables `nat` of both families, and a jump to them from `PREROUTING` and
//! `OUTPUT`. Rules of others are never touched; each family changes in one step.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::process::{Command, Stdio};

use super::probe::has_ipv6;
use super::rules::{Action, Elements, Family, Hook, Match, Rule, Ruleset};

/// What `--dry-run` prints: the input of the programs where no rules of ours are there, or for a cleanup where they are.
pub(super) fn dry_run(rules: &Ruleset, cleanup: bool) -> String {
    let mut text = String::new();
    for programs in [&IPV4, &IPV6] {
        let jumps = if cleanup { jumps(rules).collect() } else { Vec::new() };
        let input =
            if cleanup { removal(rules, &jumps) } else { replacement(rules, programs.family, &jumps) };
        let _ = write!(text, "# {} --noflush\n{input}", programs.restore);
    }
    text
}

/// Puts the rules in place of those that are there, or only removes those.
///
/// # Errors
/// When a program is missing or refuses. IPv4 comes first, and stays changed when IPv6 fails.
pub(super) fn apply(rules: &Ruleset, cleanup: bool) -> Result<(), IptablesError> {
    let ipv6 = has_ipv6().then_some(&IPV6);
    for programs in [Some(&IPV4), ipv6].into_iter().flatten() {
        let saved = run(programs.save, &["-t", "nat"], "")?;
        // A rule can be there several times, and each line removes one.
        let present: Vec<String> = saved
            .lines()
            .filter_map(|line| line.strip_prefix("-A "))
            .filter(|line| jumps(rules).any(|jump| jump == *line))
            .map(str::to_owned)
            .collect();
        let input =
            if cleanup { removal(rules, &present) } else { replacement(rules, programs.family, &present) };
        run(programs.restore, &["--noflush", "--wait=10"], &input)?;
    }
    Ok(())
}

/// The programs of a family.
struct Programs {
    family: Family,
    save: &'static str,
    restore: &'static str,
}

const IPV4: Programs = Programs { family: Family::V4, save: "iptables-save", restore: "iptables-restore" };
const IPV6: Programs = Programs { family: Family::V6, save: "ip6tables-save", restore: "ip6tables-restore" };

/// The most ports of a `multiport` match; a range counts as two.
const MULTIPORT: usize = 15;

/// The rules by which packets come to our chains, as `<chain> -j <our chain>`.
fn jumps(rules: &Ruleset) -> impl Iterator<Item = String> {
    rules.chains.iter().filter_map(|chain| {
        let hook = match chain.base?.hook {
            Hook::Prerouting => "PREROUTING",
            Hook::Output => "OUTPUT",
        };
        Some(format!("{hook} -j {}", chain_name(chain.name)))
    })
}

fn chain_name(name: &str) -> String {
    format!("TULLE_{}", name.to_ascii_uppercase())
}

/// Naming a chain makes it, or empties it.
fn emptied(rules: &Ruleset, jumps: &[String]) -> String {
    let mut text = String::from("*nat\n");
    for chain in &rules.chains {
        let _ = writeln!(text, ":{} - [0:0]", chain_name(chain.name));
    }
    for jump in jumps {
        let _ = writeln!(text, "-D {jump}");
    }
    text
}

fn removal(rules: &Ruleset, jumps: &[String]) -> String {
    let mut text = emptied(rules, jumps);
    for chain in &rules.chains {
        let _ = writeln!(text, "-X {}", chain_name(chain.name));
    }
    text + "COMMIT\n"
}

fn replacement(rules: &Ruleset, family: Family, old_jumps: &[String]) -> String {
    let mut text = emptied(rules, old_jumps);
    for chain in &rules.chains {
        for rule in &chain.rules {
            for line in lines(rules, rule, family) {
                let _ = writeln!(text, "-A {}{line}", chain_name(chain.name));
            }
        }
    }
    for jump in jumps(rules) {
        // As the priorities of nftables have it: outbound before the rules of others, inbound after them.
        let verb = if jump.starts_with("OUTPUT") { "-I" } else { "-A" };
        let _ = writeln!(text, "{verb} {jump}");
    }
    text + "COMMIT\n"
}

/// The rule in this family's terms: none where it concerns the other family alone, several where a set has more elements
/// than a rule can hold.
fn lines(rules: &Ruleset, rule: &Rule, family: Family) -> Vec<String> {
    let mut lines = vec![String::new()];
    for matching in &rule.matches {
        let texts = texts(rules, *matching, family);
        lines =
            lines.iter().flat_map(|line| texts.iter().map(move |text| format!("{line} {text}"))).collect();
    }
    let action = match rule.action {
        Action::Return => "-j RETURN".to_owned(),
        Action::Goto(chain) => format!("-g {}", chain_name(chain)),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
    };
    lines.iter().map(|line| format!("{line} {action}")).collect()
}

/// The ways in which a packet can have the property.
fn texts(rules: &Ruleset, matching: Match, family: Family) -> Vec<String> {
    let one = |text: String| vec![text];
    match matching {
        Match::Protocol(protocol) => one(format!("-p {protocol}")),
        Match::OpensTcp => one("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN".into()),
        Match::NotToThisHost => one("-m addrtype ! --dst-type LOCAL".into()),
        Match::Port(protocol, port) => one(format!("-p {protocol} -m {protocol} --dport {port}")),
        Match::PortIn(set) => match rules.set(set) {
            Elements::Ports(ports) => multiport(ports.ranges()),
            Elements::V4(_) | Elements::V6(_) => Vec::new(),
        },
        Match::Destination(ip @ IpAddr::V4(_)) if family == Family::V4 => one(format!("-d {ip}")),
        Match::Destination(ip @ IpAddr::V6(_)) if family == Family::V6 => one(format!("-d {ip}")),
        Match::Destination(_) => Vec::new(),
        Match::DestinationIn(of, set) if of == family => subnets("-d", rules.set(set)),
        Match::SourceIn(of, set) if of == family => subnets("-s", rules.set(set)),
        Match::DestinationIn(..) | Match::SourceIn(..) => Vec::new(),
        Match::User(uid) => one(format!("-m owner --uid-owner {uid}")),
        Match::Group(gid) => one(format!("-m owner --gid-owner {gid}")),
        Match::ThroughLoopback => one("-o lo".into()),
    }
}

fn subnets(flag: &str, elements: &Elements) -> Vec<String> {
    match elements {
        Elements::V4(nets) => nets.iter().map(|net| format!("{flag} {net}")).collect(),
        Elements::V6(nets) => nets.iter().map(|net| format!("{flag} {net}")).collect(),
        Elements::Ports(_) => Vec::new(),
    }
}

fn multiport(ranges: &[RangeInclusive<u16>]) -> Vec<String> {
    let mut groups: Vec<(usize, Vec<String>)> = Vec::new();
    for range in ranges {
        let (weight, text) = match (range.start(), range.end()) {
            (first, last) if first == last => (1, first.to_string()),
            (first, last) => (2, format!("{first}:{last}")),
        };
        match groups.last_mut() {
            Some((used, texts)) if *used + weight <= MULTIPORT => {
                *used += weight;
                texts.push(text);
            }
            _ => groups.push((weight, vec![text])),
        }
    }
    groups.iter().map(|(_, texts)| format!("-p tcp -m multiport --dports {}", texts.join(","))).collect()
}

/// Runs the program with this input; its output.
fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, IptablesError> {
    let missing = |error| IptablesError::Start(program, error);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says on its standard error why. It says nothing before it has read all.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        Err(IptablesError::Failed(program, said))
    }
}

/// Why the rules are not those that were asked for.
#[derive(Debug)]
pub enum IptablesError {
    /// This program can't be started.
    Start(&'static str, io::Error),
    /// This program failed, and said why.
    Failed(&'static str, String),
}

impl fmt::Display for IptablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(program, error) if error.kind() == io::ErrorKind::NotFound => write!(
                f,
                "{program} is not there: install iptables, or leave --mode iptables off, which takes no program but \
                 Linux 5.2"
            ),
            Self::Start(program, error) => write!(f, "{program}: {error}"),
            Self::Failed(program, said)
                if said.contains("ermission denied") || said.contains("not permitted") =>
            {
                write!(
                    f,
                    "{program}: {said}; iptables takes the capabilities CAP_NET_ADMIN and CAP_NET_RAW: run it as root, or \
                     add NET_ADMIN and NET_RAW to the container's securityContext.capabilities.add"
                )
            }
            Self::Failed(program, said) => write!(f, "{program} failed: {said}"),
        }
    }
}

impl std::error::Error for IptablesError {}
