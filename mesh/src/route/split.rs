//! One of several, drawn by weight.

/// The place of the chosen weight, or `None` when there is none above 0. `draw` is uniform over all of `u32`; each
/// place's probability is its share of the sum of all weights, to within 2^-32.
pub fn choose(weights: impl IntoIterator<Item = u32, IntoIter: Clone>, draw: u32) -> Option<usize> {
    let weights = weights.into_iter();
    let total: u64 = weights.clone().map(u64::from).sum();
    // Below `total`, because `draw` is below 2^32.
    let mut point = (u128::from(draw) * u128::from(total)) >> 32;
    for (place, weight) in weights.enumerate() {
        match point.checked_sub(u128::from(weight)) {
            Some(beyond) => point = beyond,
            None => return Some(place),
        }
    }
    None
}

/// The place that a number falls to, counted through the weights and from the last on from the first again (Envoy), or `None` when
/// there is no weight above 0.
pub fn choose_at(weights: impl IntoIterator<Item = u32, IntoIter: Clone>, number: u64) -> Option<usize> {
    let weights = weights.into_iter();
    let mut point = number.checked_rem(weights.clone().map(u64::from).sum())?;
    for (place, weight) in weights.enumerate() {
        match point.checked_sub(weight.into()) {
            Some(beyond) => point = beyond,
            None => return Some(place),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 2^32 draws fall to each place, found by bisection of the borders between places.
    fn shares(weights: &[u32]) -> Vec<f64> {
        let at = |draw| choose(weights.iter().copied(), draw).expect("a weight above 0");
        let below = |place: usize| {
            let (mut low, mut high) = (0u64, 1u64 << 32);
            while low < high {
                let middle = low.midpoint(high);
                match at(u32::try_from(middle).expect("below 2^32")) < place {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            low
        };
        (0..weights.len())
            .map(|place| (below(place + 1) - below(place)) as f64 / (1u64 << 32) as f64)
            .collect()
    }

    #[test]
    fn each_place_gets_its_share_to_a_millionth() {
        let max = u32::MAX;
        for weights in
            [&[90, 10][..], &[1, 1, 1], &[0, 5, 0, 2, 0], &[1, max], &[max, max, max], &[1_000_000, 1, 0]]
        {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            for (share, weight) in shares(weights).into_iter().zip(weights) {
                let expected = f64::from(*weight) / total;
                assert!((share - expected).abs() < 1e-6, "{weights:?}: {share} is not {expected}");
            }
        }
    }

    #[test]
    fn a_number_falls_to_its_place() {
        let at = |number| choose_at([2, 0, 3], number);
        assert_eq!([0, 1, 2, 4, 5, 7].map(at), [0, 0, 2, 2, 0, 2].map(Some));
        assert_eq!(choose_at([u32::MAX, u32::MAX], u64::MAX), Some(1));
        assert_eq!((choose_at([0, 0], 1), choose_at([], 1)), (None, None));
    }

    #[test]
    fn a_weight_of_zero_is_never_chosen() {
        for draw in [0, 1, u32::MAX / 2, u32::MAX] {
            assert_eq!(choose([0, 1, 0], draw), Some(1));
            assert_eq!(choose([0, 0], draw), None);
            assert_eq!(choose([], draw), None);
        }
    }
}
