//! How an endpoint is chosen.
//!
//! A client takes the first policy of the list that it knows. So a list holds Tulle's own policy first, then Envoy's, then the
//! one that gRPC has: round robin under weighted localities, without which gRPC would pass over the localities' weights.
//! Envoy has weighted localities as a setting of each policy, and refuses that form. So its round robin stands in front
//! of it as a `TypedStruct`, which Envoy reads as the policy and gRPC does not know.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use envoy_types::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::{
    RingHash, ring_hash::HashFunction as HashFunctionPb,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};

use prost::Name;

use super::localities::Places;
use crate::model::{HashFunction, Hashing, LoadBalancer};
use crate::xds::error::{At, Decoded, FieldError, refuse, required, unsupported};
use crate::xds::proto::{self, Fields};

/// Tulle's own policy, which needs no settings.
const PEAK_EWMA: &str = "type.googleapis.com/tulle.PeakEwma";

/// How many endpoints least request draws where nothing else is set, and to what power those in flight count.
const DEFAULT_CHOICES: u32 = 2;
const DEFAULT_BIAS: f64 = 1.0;
/// The sizes of a ring where nothing else is set, and the greatest that may be set.
const MIN_RING: u64 = 1024;
const MAX_RING: u64 = 8 << 20;
/// The size of a table where nothing else is set, and the greatest that may be set.
const TABLE: u64 = 65_537;
const MAX_TABLE: u64 = 5_000_011;
/// Where round robin says, in the form of fields, that localities go by weight.
const BY_LOCALITY: &str = "locality_lb_config";
/// The key of a setting that nobody changes at run time, where Envoy wants one.
const UNNAMED: &str = "tulle";

/// What is said of the choice of an endpoint.
pub(super) struct Choice {
    pub(super) balancer: LoadBalancer,
    /// What the policy itself says of localities; those that Envoy had before there was a list say nothing.
    pub(super) localities: Option<Places>,
}

impl Choice {
    /// One that says nothing of localities.
    pub(super) fn of(balancer: LoadBalancer) -> Self {
        Self { balancer, localities: None }
    }

    /// One under which the weights of localities hold, or not.
    fn weighted(balancer: LoadBalancer, weighted: bool) -> Self {
        Self { balancer, localities: Some(Places { weighted: Some(weighted), fails_requests: false }) }
    }

    fn placed(balancer: LoadBalancer, config: Option<LocalityLbConfig>) -> Self {
        let places = match config.and_then(|config| config.locality_config_specifier) {
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
                return Self::weighted(balancer, true);
            }
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => {
                Places { weighted: Some(false), fails_requests: zones.fail_traffic_on_panic }
            }
            None => return Self::weighted(balancer, false),
        };
        Self { balancer, localities: Some(places) }
    }
}

pub(super) fn encode(balancer: LoadBalancer, weighted: bool) -> pb::LoadBalancingPolicy {
    let by_weight = || weighted.then(by_weight);
    let own_weight = weighted.then(LocalityWeightedLbConfig::default);
    let least_request = |choices, bias| {
        let config = LeastRequest {
            choice_count: proto::u32_value(choices),
            active_request_bias: (bias != DEFAULT_BIAS)
                .then(|| RuntimeDouble { default_value: bias, runtime_key: UNNAMED.into() }),
            locality_lb_config: by_weight(),
            ..Default::default()
        };
        policy("envoy.load_balancing_policies.least_request", proto::any(&config))
    };
    let policies = match balancer {
        LoadBalancer::PeakEwma => vec![
            policy("tulle.peak_ewma", proto::extension_fields(PEAK_EWMA, Fields::new())),
            least_request(DEFAULT_CHOICES, DEFAULT_BIAS),
            round_robin_by_locality(),
        ],
        LoadBalancer::LeastRequest { choices, bias } => {
            vec![least_request(choices, bias), round_robin_by_locality()]
        }
        LoadBalancer::RoundRobin => {
            let by_weight = proto::object([("locality_weighted_lb_config", proto::object([]))]);
            let fields = weighted.then(|| (BY_LOCALITY.to_owned(), by_weight)).into_iter().collect();
            let config = proto::extension_fields(&RoundRobin::type_url(), fields);
            vec![policy("envoy.load_balancing_policies.round_robin", config), round_robin_by_locality()]
        }
        LoadBalancer::Random => {
            let config = Random { locality_lb_config: by_weight() };
            let random = policy("envoy.load_balancing_policies.random", proto::any(&config));
            vec![random, round_robin_by_locality()]
        }
        LoadBalancer::RingHash { min_size, max_size, function, hashing } => {
            let config = RingHash {
                hash_function: match function {
                    HashFunction::Xx => HashFunctionPb::XxHash as i32,
                    HashFunction::Murmur2 => HashFunctionPb::MurmurHash2 as i32,
                },
                consistent_hashing_lb_config: encode_hashing(hashing),
                minimum_ring_size: Some(UInt64Value { value: min_size }),
                maximum_ring_size: Some(UInt64Value { value: max_size }),
                locality_weighted_lb_config: own_weight,
                ..Default::default()
            };
            vec![policy("envoy.load_balancing_policies.ring_hash", proto::any(&config))]
        }
        LoadBalancer::Maglev { table_size, hashing } => {
            let config = Maglev {
                consistent_hashing_lb_config: encode_hashing(hashing),
                table_size: Some(UInt64Value { value: table_size.into() }),
                locality_weighted_lb_config: own_weight,
            };
            vec![policy("envoy.load_balancing_policies.maglev", proto::any(&config))]
        }
    };
    pb::LoadBalancingPolicy { policies }
}

pub(super) fn decode(message: &pb::Cluster) -> Decoded<Choice> {
    match &message.load_balancing_policy {
        Some(list) => decode_list(list, true).at("load_balancing_policy"),
        None => decode_policy(message).map(Choice::of),
    }
}

/// The first policy of the list that is known. Weighted localities hold one more list, and within that they may not stand
/// again: a list that nests without end must not use up the stack.
fn decode_list(list: &pb::LoadBalancingPolicy, may_nest: bool) -> Decoded<Choice> {
    for (index, policy) in list.policies.iter().enumerate() {
        let config = policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        let Some(config) = config else { continue };
        if let Some(choice) = decode_config(config, may_nest).at_item("policies", index)? {
            return Ok(choice);
        }
    }
    Err(FieldError::new(
        "holds no policy that is known: add round_robin, least_request, random, ring_hash, maglev or wrr_locality",
    ))
    .at("policies")
}

fn decode_config(config: &Any, may_nest: bool) -> Decoded<Option<Choice>> {
    if proto::decode_fields(config, PEAK_EWMA)?.is_some() {
        return Ok(Some(Choice::of(LoadBalancer::PeakEwma)));
    }
    if proto::is::<LeastRequest>(config) {
        let least: LeastRequest = proto::unpack(config)?;
        refuse!(least; selection_method, slow_start_config)?;
        let balancer = decode_least_request(least.choice_count, least.active_request_bias)?;
        return Ok(Some(Choice::placed(balancer, least.locality_lb_config)));
    }
    if let Some(fields) = proto::decode_fields(config, &RoundRobin::type_url())? {
        return Ok(Some(Choice::weighted(LoadBalancer::RoundRobin, fields.contains_key(BY_LOCALITY))));
    }
    if proto::is::<RoundRobin>(config) {
        let round_robin: RoundRobin = proto::unpack(config)?;
        refuse!(round_robin; slow_start_config)?;
        return Ok(Some(Choice::placed(LoadBalancer::RoundRobin, round_robin.locality_lb_config)));
    }
    if proto::is::<Random>(config) {
        let random: Random = proto::unpack(config)?;
        return Ok(Some(Choice::placed(LoadBalancer::Random, random.locality_lb_config)));
    }
    if proto::is::<RingHash>(config) {
        let ring: RingHash = proto::unpack(config)?;
        let murmur = ring.hash_function == HashFunctionPb::MurmurHash2 as i32;
        let weighted = ring.locality_weighted_lb_config.is_some();
        let hashing = decode_ring_hashing(&ring)?;
        let balancer = decode_ring(ring.minimum_ring_size, ring.maximum_ring_size, murmur, hashing)?;
        return Ok(Some(Choice::weighted(balancer, weighted)));
    }
    if proto::is::<Maglev>(config) {
        let maglev: Maglev = proto::unpack(config)?;
        let weighted = maglev.locality_weighted_lb_config.is_some();
        let hashing = decode_hashing(maglev.consistent_hashing_lb_config)?;
        return Ok(Some(Choice::weighted(decode_table(maglev.table_size, hashing)?, weighted)));
    }
    if may_nest && proto::is::<WrrLocality>(config) {
        let weighted: WrrLocality = proto::unpack(config)?;
        let inner = required(weighted.endpoint_picking_policy, "endpoint_picking_policy")?;
        let inner = decode_list(&inner, false).at("endpoint_picking_policy")?;
        return Ok(Some(Choice::weighted(inner.balancer, true)));
    }
    Ok(None)
}

fn decode_policy(message: &pb::Cluster) -> Decoded<LoadBalancer> {
    let config = message.lb_config.as_ref();
    let hashing = || {
        let common = message.common_lb_config.as_ref();
        let hashing = common.and_then(|common| common.consistent_hashing_lb_config.as_ref());
        let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds as i32);
        let eds = message.cluster_discovery_type.as_ref() == Some(&eds);
        let hashing = hashing.map_or(Ok(Hashing::default()), |config| {
            // As in Envoy, which takes it there in a load_balancing_policy alone.
            let instead = "with EDS use load_balancing_policy";
            unsupported(eds && config.use_hostname_for_hashing, "use_hostname_for_hashing", instead)?;
            hashing_of(config.use_hostname_for_hashing, config.hash_balance_factor)
        });
        hashing.at("common_lb_config.consistent_hashing_lb_config")
    };
    let problem = match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            let slow_start =
                matches!(config, Some(LbConfig::RoundRobinLbConfig(own)) if own.slow_start_config.is_some());
            unsupported(slow_start, "round_robin_lb_config.slow_start_config", "leave it out")?;
            return Ok(LoadBalancer::RoundRobin);
        }
        Ok(LbPolicy::Random) => return Ok(LoadBalancer::Random),
        Ok(LbPolicy::LeastRequest) => {
            let (choices, bias) = match config {
                Some(LbConfig::LeastRequestLbConfig(least)) => {
                    refuse!(least; slow_start_config).at("least_request_lb_config")?;
                    (least.choice_count, least.active_request_bias.clone())
                }
                _ => (None, None),
            };
            return decode_least_request(choices, bias).at("least_request_lb_config");
        }
        Ok(LbPolicy::RingHash) => {
            let (min, max, function) = match config {
                Some(LbConfig::RingHashLbConfig(ring)) => {
                    (ring.minimum_ring_size, ring.maximum_ring_size, ring.hash_function)
                }
                _ => (None, None, 0),
            };
            use pb::cluster::ring_hash_lb_config::HashFunction;
            let murmur = function == HashFunction::MurmurHash2 as i32;
            return decode_ring(min, max, murmur, hashing()?).at("ring_hash_lb_config");
        }
        Ok(LbPolicy::Maglev) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(maglev)) => maglev.table_size,
                _ => None,
            };
            return decode_table(size, hashing()?).at("maglev_lb_config");
        }
        Ok(LbPolicy::ClusterProvided) => "CLUSTER_PROVIDED is only for ORIGINAL_DST: use ROUND_ROBIN",
        Ok(LbPolicy::LoadBalancingPolicyConfig) => "asks for load_balancing_policy: set that",
        Err(_) => "is not a policy: use ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH or MAGLEV",
    };
    Err(FieldError::new(problem)).at("lb_policy")
}

fn decode_least_request(choices: Option<UInt32Value>, bias: Option<RuntimeDouble>) -> Decoded<LoadBalancer> {
    let bias = bias.map_or(DEFAULT_BIAS, |bias| bias.default_value);
    if !(bias.is_finite() && bias >= 0.0) {
        return Err(FieldError::new(format!("{bias} is not a power: use 0 or more")))
            .at("active_request_bias");
    }
    match choices.map_or(DEFAULT_CHOICES, |choices| choices.value) {
        choices @ 0..=1 => Err(FieldError::new(format!("is {choices}: draw at least 2"))).at("choice_count"),
        choices => Ok(LoadBalancer::LeastRequest { choices, bias }),
    }
}

fn encode_hashing(hashing: Hashing) -> Option<ConsistentHashingLbConfig> {
    (hashing != Hashing::default()).then(|| ConsistentHashingLbConfig {
        use_hostname_for_hashing: hashing.by_hostname,
        hash_balance_factor: proto::u32_value(hashing.balance_factor),
        ..Default::default()
    })
}

fn decode_hashing(config: Option<ConsistentHashingLbConfig>) -> Decoded<Hashing> {
    let config = config.unwrap_or_default();
    let read = || {
        refuse!(config; hash_policy)?;
        hashing_of(config.use_hostname_for_hashing, config.hash_balance_factor)
    };
    read().at("consistent_hashing_lb_config")
}

#[expect(deprecated, reason = "other control planes may still send old fields")]
fn decode_ring_hashing(ring: &RingHash) -> Decoded<Hashing> {
    match &ring.consistent_hashing_lb_config {
        Some(config) => decode_hashing(Some(config.clone())),
        None => hashing_of(ring.use_hostname_for_hashing, ring.hash_balance_factor),
    }
}

fn hashing_of(by_hostname: bool, balance_factor: Option<UInt32Value>) -> Decoded<Hashing> {
    match balance_factor.map(|factor| factor.value) {
        Some(factor @ 1..100) => {
            let problem = format!("is {factor}, with which not all requests have room: use at least 100");
            Err(FieldError::new(problem)).at("hash_balance_factor")
        }
        factor => Ok(Hashing { by_hostname, balance_factor: factor.filter(|factor| *factor > 0) }),
    }
}

fn decode_ring(
    min: Option<UInt64Value>,
    max: Option<UInt64Value>,
    murmur: bool,
    hashing: Hashing,
) -> Decoded<LoadBalancer> {
    let function = if murmur { HashFunction::Murmur2 } else { HashFunction::Xx };
    let max_size = max.map_or(MAX_RING, |max| max.value);
    let min_size = min.map_or(MIN_RING.min(max_size), |min| min.value);
    if max_size == 0 || max_size > MAX_RING {
        let problem = format!("{max_size} is not a size: use 1 to {MAX_RING}");
        return Err(FieldError::new(problem)).at("maximum_ring_size");
    }
    if min_size > max_size {
        let problem = format!("{min_size} is above the maximum of {max_size}");
        return Err(FieldError::new(problem)).at("minimum_ring_size");
    }
    Ok(LoadBalancer::RingHash { min_size, max_size, function, hashing })
}

/// Only in a table whose size is a prime does each endpoint come past every entry.
fn decode_table(size: Option<UInt64Value>, hashing: Hashing) -> Decoded<LoadBalancer> {
    let size = size.map_or(TABLE, |size| size.value);
    let is_prime =
        || (2..).take_while(|divisor| divisor * divisor <= size).all(|divisor| !size.is_multiple_of(divisor));
    match u32::try_from(size) {
        Ok(table_size) if (2..=MAX_TABLE).contains(&size) && is_prime() => {
            Ok(LoadBalancer::Maglev { table_size, hashing })
        }
        _ => Err(FieldError::new(format!("{size} is not a size: use a prime up to {MAX_TABLE}")))
            .at("table_size"),
    }
}

fn round_robin_by_locality() -> Policy {
    let config = RoundRobin::default();
    let inner = policy("envoy.load_balancing_policies.round_robin", proto::any(&config));
    let weighted =
        WrrLocality { endpoint_picking_policy: Some(pb::LoadBalancingPolicy { policies: vec![inner] }) };
    policy("envoy.load_balancing_policies.wrr_locality", proto::any(&weighted))
}

/// Envoy passes over the localities' weights unless it is told to heed them.
fn by_weight() -> LocalityLbConfig {
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default());
    LocalityLbConfig { locality_config_specifier: Some(weighted) }
}

fn policy(name: &str, config: Any) -> Policy {
    Policy { typed_extension_config: Some(proto::extension(name, config)) }
}
