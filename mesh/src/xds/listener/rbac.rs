//! Authorization: Envoy's RBAC, for requests and for connections.
//!
//! Protobuf keeps policies in a map, so they have no order but that of their names; which one stands first makes no
//! difference to a decision. Policies are written and read in the order of their names.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use envoy_types::pb::google::protobuf::Any;
use prost::Name;

use crate::model::{Action, Authorization, Permission, Policy, Principal, StringMatch};
use crate::xds::error::{At, Decoded, FieldError, each, refuse, required, unsupported};
use crate::xds::{matching, proto};

const FILTER_PREFIX: &str = "tulle.authorization.";

/// The name of the filter that holds a set of this name.
pub(super) fn filter_name(name: &str) -> String {
    format!("{FILTER_PREFIX}{name}")
}

/// Writes sets as one filter: at most one that is enforced, and one that only reports.
pub(super) fn encode_http(sets: &[Authorization]) -> Any {
    Any { type_url: http::Rbac::type_url(), value: proto::merged(http_parts(sets)) }
}

/// The same as what a route says of the filter.
pub(super) fn encode_per_route(sets: &[Authorization]) -> Any {
    let parts = http_parts(sets).map(|rbac| http::RbacPerRoute { rbac: Some(rbac) });
    Any { type_url: http::RbacPerRoute::type_url(), value: proto::merged(parts) }
}

fn http_parts(sets: &[Authorization]) -> impl Iterator<Item = http::Rbac> {
    sets.iter().flat_map(|set| {
        encode_rules(set).into_iter().map(|rules| {
            let (rules, shadow_rules) =
                if set.audit_only { (None, Some(rules)) } else { (Some(rules), None) };
            http::Rbac { rules, shadow_rules, ..Default::default() }
        })
    })
}

pub(super) fn encode_network(set: &Authorization) -> Any {
    let head = network::Rbac { stat_prefix: filter_name(&set.name), ..Default::default() };
    let parts = encode_rules(set).into_iter().map(|rules| {
        let (rules, shadow_rules) = if set.audit_only { (None, Some(rules)) } else { (Some(rules), None) };
        network::Rbac { rules, shadow_rules, ..Default::default() }
    });
    Any { type_url: network::Rbac::type_url(), value: proto::merged([head].into_iter().chain(parts)) }
}

/// Reads the sets of a filter: the enforced one, and the one that only reports.
pub(super) fn decode_http(filter: &str, rbac: http::Rbac) -> Decoded<Vec<Authorization>> {
    unsupported(rbac.matcher.is_some(), "matcher", "use rules")?;
    unsupported(rbac.shadow_matcher.is_some(), "shadow_matcher", "use shadow_rules")?;
    decode_sets(filter, rbac.rules, rbac.shadow_rules)
}

/// Reads the sets of a connection's filter.
pub(super) fn decode_network(filter: &str, rbac: network::Rbac) -> Decoded<Vec<Authorization>> {
    unsupported(rbac.matcher.is_some(), "matcher", "use rules")?;
    unsupported(rbac.shadow_matcher.is_some(), "shadow_matcher", "use shadow_rules")?;
    refuse!(rbac; enforcement_type)?;
    let sets = decode_sets(filter, rbac.rules, rbac.shadow_rules)?;
    for policy in sets.iter().flat_map(|set| &set.policies) {
        if policy.permissions.iter().any(asks_request) || policy.principals.iter().any(asks_requester) {
            let problem = "a connection has neither headers nor a path: put the policy in an HTTP filter";
            return Err(FieldError::new(problem)).at_key("policies", &policy.name);
        }
    }
    Ok(sets)
}

/// Whether a permission can only be checked on a request. On a connection it would never hold, and a policy that denies
/// would let pass what it names; Envoy refuses it as well.
fn asks_request(permission: &Permission) -> bool {
    match permission {
        Permission::Header(_) | Permission::UrlPath(_) => true,
        Permission::And(all) | Permission::Or(all) => all.iter().any(asks_request),
        Permission::Not(inner) => asks_request(inner),
        Permission::Any
        | Permission::DestinationPort(_)
        | Permission::DestinationPortRange(..)
        | Permission::DestinationIp(_)
        | Permission::RequestedServerName(_) => false,
    }
}

/// The same for a principal.
fn asks_requester(principal: &Principal) -> bool {
    match principal {
        Principal::Header(_) | Principal::UrlPath(_) => true,
        Principal::And(all) | Principal::Or(all) => all.iter().any(asks_requester),
        Principal::Not(inner) => asks_requester(inner),
        Principal::Any
        | Principal::Authenticated(_)
        | Principal::SourceIp(_)
        | Principal::ConnectionIp(_)
        | Principal::RemoteIp(_) => false,
    }
}

/// Without rules, a filter lets everything pass, as in Envoy.
fn decode_sets(
    filter: &str,
    rules: Option<pb::Rbac>,
    shadow: Option<pb::Rbac>,
) -> Decoded<Vec<Authorization>> {
    let name = filter.strip_prefix(FILTER_PREFIX).unwrap_or(filter);
    let enforced = rules.map(|rules| decode_rules(name, rules, false).at("rules")).transpose()?;
    let reported = shadow.map(|rules| decode_rules(name, rules, true).at("shadow_rules")).transpose()?;
    Ok(enforced.into_iter().chain(reported).collect())
}

/// A set as parts, one for its action and one for each policy in the order of their names; merged, they are the set. Two
/// policies of one name both count, the second under a longer name.
fn encode_rules(set: &Authorization) -> Vec<pb::Rbac> {
    let action = match set.action {
        Action::Allow => pb::rbac::Action::Allow,
        Action::Deny => pb::rbac::Action::Deny,
        Action::Audit => pb::rbac::Action::Log,
    };
    let mut policies = BTreeMap::new();
    for policy in &set.policies {
        let mut name = policy.name.clone();
        while policies.contains_key(&name) {
            name.push('\'');
        }
        policies.insert(name, encode_policy(policy));
    }
    let head = pb::Rbac { action: action as i32, ..Default::default() };
    let parts =
        policies.into_iter().map(|policy| pb::Rbac { policies: [policy].into(), ..Default::default() });
    std::iter::once(head).chain(parts).collect()
}

fn decode_rules(name: &str, rbac: pb::Rbac, audit_only: bool) -> Decoded<Authorization> {
    let action = match pb::rbac::Action::try_from(rbac.action) {
        Ok(pb::rbac::Action::Allow) => Action::Allow,
        Ok(pb::rbac::Action::Deny) => Action::Deny,
        Ok(pb::rbac::Action::Log) => Action::Audit,
        Err(_) => {
            return Err(FieldError::new(format!("{} is not an action", rbac.action))).at("action");
        }
    };
    let sorted: BTreeMap<_, _> = rbac.policies.into_iter().collect();
    let policies = sorted.into_iter().map(|(name, policy)| {
        let decoded = decode_policy(&name, policy);
        decoded.at_key("policies", &name)
    });
    Ok(Authorization { name: name.into(), action, policies: policies.collect::<Decoded<_>>()?, audit_only })
}

fn encode_policy(policy: &Policy) -> pb::Policy {
    pb::Policy {
        permissions: policy.permissions.iter().map(encode_permission).collect(),
        principals: policy.principals.iter().map(encode_principal).collect(),
        ..Default::default()
    }
}

fn decode_policy(name: &str, policy: pb::Policy) -> Decoded<Policy> {
    let fix = "use permissions and principals";
    unsupported(policy.condition.is_some(), "condition", fix)?;
    unsupported(policy.checked_condition.is_some(), "checked_condition", fix)?;
    Ok(Policy {
        name: name.into(),
        permissions: decode_all("permissions", policy.permissions, decode_permission)?,
        principals: decode_all("principals", policy.principals, decode_principal)?,
    })
}

/// A list that must not be empty: whether nothing at all holds is a question that nobody should have to ask.
fn decode_all<P, T>(field: &str, items: Vec<P>, decode: fn(P) -> Decoded<T>) -> Decoded<Vec<T>> {
    if items.is_empty() {
        return Err(FieldError::new("is empty: add a condition, or any: true")).at(field);
    }
    each(field, items, decode)
}

fn encode_permission(permission: &Permission) -> pb::Permission {
    let all =
        |rules: &[Permission]| pb::permission::Set { rules: rules.iter().map(encode_permission).collect() };
    pb::Permission {
        rule: Some(match permission {
            Permission::Any => Rule::Any(true),
            Permission::And(rules) => Rule::AndRules(all(rules)),
            Permission::Or(rules) => Rule::OrRules(all(rules)),
            Permission::Not(rule) => Rule::NotRule(Box::new(encode_permission(rule))),
            Permission::Header(header) => Rule::Header(matching::header(header)),
            Permission::UrlPath(path) => Rule::UrlPath(encode_path(path)),
            Permission::DestinationPort(port) => Rule::DestinationPort((*port).into()),
            Permission::DestinationPortRange(first, last) => {
                Rule::DestinationPortRange(Int32Range { start: i32::from(*first), end: i32::from(*last) + 1 })
            }
            Permission::DestinationIp(range) => Rule::DestinationIp(matching::range(*range)),
            Permission::RequestedServerName(name) => Rule::RequestedServerName(matching::string(name)),
        }),
    }
}

/// How deep conditions nest is bounded by the protobuf decoder, at 100 messages.
fn decode_permission(permission: pb::Permission) -> Decoded<Permission> {
    let problem = match required(permission.rule, "rule")? {
        Rule::Any(true) => return Ok(Permission::Any),
        Rule::AndRules(set) => {
            return decode_all("rules", set.rules, decode_permission).at("and_rules").map(Permission::And);
        }
        Rule::OrRules(set) => {
            return decode_all("rules", set.rules, decode_permission).at("or_rules").map(Permission::Or);
        }
        Rule::NotRule(rule) => {
            return decode_permission(*rule).at("not_rule").map(|rule| Permission::Not(Box::new(rule)));
        }
        Rule::Header(header) => return matching::decode_header(header).at("header").map(Permission::Header),
        Rule::UrlPath(path) => return decode_path(path).at("url_path").map(Permission::UrlPath),
        Rule::DestinationPort(port) => {
            return proto::decode_port(port, "destination_port").map(Permission::DestinationPort);
        }
        Rule::DestinationPortRange(range) => {
            return decode_ports(range).at("destination_port_range");
        }
        Rule::DestinationIp(range) => {
            return matching::decode_range(range).at("destination_ip").map(Permission::DestinationIp);
        }
        Rule::RequestedServerName(name) => {
            return matching::decode_string(name)
                .at("requested_server_name")
                .map(Permission::RequestedServerName);
        }
        Rule::Any(false) => "any must be true: use not_rule",
        _ => {
            "this rule is not supported: use header, url_path, destination_ip, destination_port, destination_port_range or \
             requested_server_name"
        }
    };
    Err(FieldError::new(problem))
}

/// The end is not one of the ports.
fn decode_ports(range: Int32Range) -> Decoded<Permission> {
    let last = range.end.checked_sub(1).and_then(|last| u16::try_from(last).ok());
    match (u16::try_from(range.start).ok(), last) {
        (Some(first), Some(last)) if first <= last => Ok(Permission::DestinationPortRange(first, last)),
        _ => {
            let Int32Range { start, end } = range;
            let problem = format!(
                "from {start} to before {end} there is no port: use a start from 0 to 65535 and an end above it, up to 65536"
            );
            Err(FieldError::new(problem))
        }
    }
}

#[expect(deprecated, reason = "source_ip is the one of its kind")]
fn encode_principal(principal: &Principal) -> pb::Principal {
    let all = |ids: &[Principal]| pb::principal::Set { ids: ids.iter().map(encode_principal).collect() };
    pb::Principal {
        identifier: Some(match principal {
            Principal::Any => Identifier::Any(true),
            Principal::And(ids) => Identifier::AndIds(all(ids)),
            Principal::Or(ids) => Identifier::OrIds(all(ids)),
            Principal::Not(id) => Identifier::NotId(Box::new(encode_principal(id))),
            Principal::Authenticated(name) => Identifier::Authenticated(pb::principal::Authenticated {
                principal_name: name.as_ref().map(matching::string),
            }),
            Principal::SourceIp(range) => Identifier::DirectRemoteIp(matching::range(*range)),
            Principal::ConnectionIp(range) => Identifier::SourceIp(matching::range(*range)),
            Principal::RemoteIp(range) => Identifier::RemoteIp(matching::range(*range)),
            Principal::Header(header) => Identifier::Header(matching::header(header)),
            Principal::UrlPath(path) => Identifier::UrlPath(encode_path(path)),
        }),
    }
}

#[expect(deprecated, reason = "source_ip is the one of its kind")]
fn decode_principal(principal: pb::Principal) -> Decoded<Principal> {
    let problem = match required(principal.identifier, "identifier")? {
        Identifier::Any(true) => return Ok(Principal::Any),
        Identifier::AndIds(set) => {
            return decode_all("ids", set.ids, decode_principal).at("and_ids").map(Principal::And);
        }
        Identifier::OrIds(set) => {
            return decode_all("ids", set.ids, decode_principal).at("or_ids").map(Principal::Or);
        }
        Identifier::NotId(id) => {
            return decode_principal(*id).at("not_id").map(|id| Principal::Not(Box::new(id)));
        }
        Identifier::Authenticated(peer) => {
            let name = peer.principal_name.map(matching::decode_string).transpose();
            return name.at("authenticated.principal_name").map(Principal::Authenticated);
        }
        Identifier::DirectRemoteIp(range) => {
            return matching::decode_range(range).at("direct_remote_ip").map(Principal::SourceIp);
        }
        Identifier::SourceIp(range) => {
            return matching::decode_range(range).at("source_ip").map(Principal::ConnectionIp);
        }
        Identifier::RemoteIp(range) => {
            return matching::decode_range(range).at("remote_ip").map(Principal::RemoteIp);
        }
        Identifier::Header(header) => {
            return matching::decode_header(header).at("header").map(Principal::Header);
        }
        Identifier::UrlPath(path) => return decode_path(path).at("url_path").map(Principal::UrlPath),
        Identifier::Any(false) => "any must be true: use not_id",
        _ => {
            "this identifier is not supported: use authenticated, direct_remote_ip, remote_ip, header or url_path"
        }
    };
    Err(FieldError::new(problem))
}

fn encode_path(path: &StringMatch) -> PathMatcher {
    PathMatcher { rule: Some(path_matcher::Rule::Path(matching::string(path))) }
}

fn decode_path(path: PathMatcher) -> Decoded<StringMatch> {
    let path_matcher::Rule::Path(path) = required(path.rule, "path")?;
    matching::decode_string(path).at("path")
}
