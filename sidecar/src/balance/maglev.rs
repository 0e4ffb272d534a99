//! A Maglev table, entry for entry as Envoy fills it, so that both send a key to the same endpoint.

use twox_hash::XxHash64;

/// Each entry belongs to an endpoint, in proportion to its weight.
pub(super) struct Table {
    /// Indices of endpoints.
    entries: Box<[u32]>,
}

/// An endpoint while the table is filled.
struct Builder {
    index: u32,
    /// Where it starts, and how far its next wish is.
    offset: u64,
    skip: u64,
    /// How many entries it has wished for.
    next: u64,
    /// Its part of the greatest weight; what it needs for its next turn.
    weight: f64,
    target: f64,
}

impl Table {
    /// Fills `size` entries, a prime. In turns, each endpoint takes the next of its own order that is free; of less
    /// weight, it has fewer turns.
    pub(super) fn new(endpoints: &[(String, f64)], size: u32) -> Self {
        let greatest = endpoints.iter().map(|(_, weight)| *weight).fold(f64::MIN_POSITIVE, f64::max);
        let mut named: Vec<_> =
            (0..).zip(endpoints).map(|(index, (name, weight))| (name.as_str(), index, *weight)).collect();
        // By name, so that the order in which they are listed makes no difference.
        named.sort_by_key(|(name, ..)| *name);
        let size = u64::from(size);
        let builder = |(name, index, weight): (&str, u32, f64)| Builder {
            index,
            offset: XxHash64::oneshot(0, name.as_bytes()) % size,
            skip: XxHash64::oneshot(1, name.as_bytes()) % (size - 1) + 1,
            next: 0,
            weight: weight / greatest,
            target: 0.0,
        };
        let mut builders: Vec<_> = named.into_iter().map(builder).collect();
        let mut entries = vec![FREE; size as usize];
        let mut free = if builders.is_empty() { 0 } else { entries.len() };
        let mut turn = 0.0;
        while free > 0 {
            turn += 1.0;
            for builder in &mut builders {
                if turn * builder.weight < builder.target {
                    continue;
                }
                builder.target += 1.0;
                let entry = builder.wish(&entries, size);
                entries[entry] = builder.index;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        entries.retain(|entry| *entry != FREE);
        Self { entries: entries.into() }
    }

    /// The endpoints in the order in which they would serve `hash`: the first is its own, the next take its place when
    /// it is out.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let start = hash.checked_rem(self.entries.len() as u64).unwrap_or(0) as usize;
        let (before, after) = self.entries.split_at(start);
        after.iter().chain(before).map(|index| *index as usize)
    }
}

/// An entry that nobody has.
const FREE: u32 = u32::MAX;

impl Builder {
    /// The next entry of its order that is free. There is one: since the size is a prime, the order comes past all.
    fn wish(&mut self, entries: &[u32], size: u64) -> usize {
        loop {
            let entry = ((self.offset + self.skip * self.next) % size) as usize;
            self.next += 1;
            if entries[entry] == FREE {
                return entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(n: u8) -> Vec<(String, f64)> {
        (0..n).map(|i| (format!("10.0.0.{i}:80"), 1.0)).collect()
    }

    fn count(table: &Table, index: u32) -> usize {
        table.entries.iter().filter(|entry| **entry == index).count()
    }

    #[test]
    fn entries_follow_weights() {
        let mut endpoints = addresses(3);
        endpoints[0].1 = 2.0;
        let table = Table::new(&endpoints, 65_537);
        let shares = [0, 1, 2].map(|index| count(&table, index));
        assert_eq!(shares.iter().sum::<usize>(), 65_537);
        assert!(shares[0].abs_diff(32_768) < 5 && shares[1].abs_diff(16_384) < 5, "{shares:?}");
    }

    #[test]
    fn few_keys_move_when_an_endpoint_goes() {
        let (before, after) = (Table::new(&addresses(10), 65_537), Table::new(&addresses(9), 65_537));
        let moved = before.entries.iter().zip(&after.entries).filter(|(b, a)| **b != 9 && b != a).count();
        assert!(moved < 65_537 / 20, "{moved}");
    }

    #[test]
    fn the_order_of_the_list_makes_no_difference_and_no_endpoints_make_no_entries() {
        let mut turned = addresses(4);
        turned.reverse();
        let (one, other) = (Table::new(&addresses(4), 1009), Table::new(&turned, 1009));
        assert!(one.entries.iter().zip(&other.entries).all(|(a, b)| *a == 3 - b));
        assert_eq!(Table::new(&[], 1009).walk(7).count(), 0);
    }
}
