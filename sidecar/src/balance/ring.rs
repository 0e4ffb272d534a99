//! A consistent-hash ring, point for point as Envoy builds it, so that both send a key to the same endpoint.

use std::fmt::Write;

use tulle_mesh::model::HashFunction;
use twox_hash::XxHash64;

/// Hashes on a circle; each belongs to an endpoint, in proportion to its weight.
pub(super) struct Ring {
    /// (hash, index of the endpoint), sorted.
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// Places the hash of `<name>_<i>` for each endpoint: as many points as make the lightest endpoint's share whole, at
    /// least `min_size` and at most `max_size` in all.
    pub(super) fn new(
        endpoints: &[(String, f64)],
        min_size: u64,
        max_size: u64,
        function: HashFunction,
    ) -> Self {
        let total: f64 = endpoints.iter().map(|(_, weight)| weight).sum();
        let lightest = endpoints.iter().map(|(_, weight)| weight / total).fold(1.0, f64::min);
        // A floor of one point for each endpoint and a ceiling against configuration that asks for gigabytes.
        let max_size = (max_size.min(MAX_POINTS) as f64).max(endpoints.len() as f64);
        let scale = ((lightest * min_size as f64).ceil() / lightest).min(max_size);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut placed, mut target) = (0.0, 0.0);
        let mut key = String::new();
        for (index, (name, weight)) in endpoints.iter().enumerate() {
            target += scale * weight / total;
            let mut i = 0u64;
            while placed < target {
                key.clear();
                // Writing to a String can't fail.
                let _ = write!(key, "{name}_{i}");
                let point = match function {
                    HashFunction::Xx => hash(key.as_bytes()),
                    HashFunction::Murmur2 => murmur2(key.as_bytes()),
                };
                points.push((point, index as u32));
                placed += 1.0;
                i += 1;
            }
        }
        points.sort_unstable();
        Self { points: points.into() }
    }

    /// The endpoints in the order in which they would serve `hash`: the first is its own, the next take its place when
    /// it is out. An endpoint comes as often as it has points.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let start = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }
}

/// Envoy's default for `maximum_ring_size`.
const MAX_POINTS: u64 = 8 * 1024 * 1024;

/// XXH64 with seed 0, as every hash that a ring is asked for.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    hash_after(0, bytes)
}

/// The same of what follows something of which this is the hash.
pub(crate) fn hash_after(before: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(before, bytes)
}

/// MurmurHash2 of 64 bits, with the seed that Envoy has from `std::hash`.
fn murmur2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MIX: u64 = 0xc6a4_a793_5bd1_e995;
    let shift = |value: u64| value ^ (value >> 47);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MIX);
    for word in words {
        let word = u64::from_le_bytes(*word).wrapping_mul(MIX);
        hash = (hash ^ shift(word).wrapping_mul(MIX)).wrapping_mul(MIX);
    }
    if !rest.is_empty() {
        let rest = rest.iter().rev().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MIX);
    }
    shift(shift(hash).wrapping_mul(MIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(n: u16) -> Vec<(String, f64)> {
        (0..n).map(|i| (format!("10.0.{}.{}:80", i >> 8, i & 255), 1.0)).collect()
    }

    #[test]
    fn the_other_hash_is_that_of_the_standard_library_of_gcc() {
        // `std::hash<std::string>` of libstdc++ on 64 bits.
        assert_eq!(murmur2(b""), 0x553e_9390_1e46_2a6e);
        assert_eq!(murmur2(b"10.0.0.1:80_17"), 0x3d93_8892_823c_2ba7);
        assert_eq!(murmur2(b"a"), 0x454d_dee4_88c1_ed6b);
    }

    #[test]
    fn the_hash_is_xxh64() {
        assert_eq!(hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(hash(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn points_follow_weights() {
        let mut endpoints = addresses(3);
        endpoints[0].1 = 2.0;
        let ring = Ring::new(&endpoints, 1024, 8 << 20, HashFunction::Xx);
        let count = |index| ring.points.iter().filter(|(_, i)| *i == index).count();
        assert_eq!((count(0), count(1), count(2)), (512, 256, 256));
    }

    #[test]
    fn a_ring_is_no_larger_than_allowed() {
        let mut endpoints = addresses(4);
        endpoints[0].1 = 1000.0;
        assert!(Ring::new(&endpoints, 1024, 100, HashFunction::Xx).points.len() <= 101);
        assert_eq!(Ring::new(&addresses(1), 1024, 1, HashFunction::Xx).points.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn passing_over_an_endpoint_moves_only_its_own_keys(keys in proptest::collection::vec(any::<u64>(), 50), n in 2u16..12) {
            let ring = Ring::new(&addresses(n), 1024, 8 << 20, HashFunction::Xx);
            let gone = usize::from(n) - 1;
            for key in keys {
                let owner = ring.walk(key).next().expect("not empty");
                let next = ring.walk(key).find(|i| *i != gone).expect("two endpoints");
                prop_assert!(owner == gone || next == owner);
            }
        }
    }
}
