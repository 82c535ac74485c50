//! What is said of samples.

/// The median; of an even number, the mean of the two in the middle.
#[must_use]
pub fn median(samples: &[u64]) -> Option<u64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(lower + (upper - lower) / 2)
}

/// The smallest of the sorted samples that `percent` of them do not exceed; 0 of
/// none.
#[must_use]
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// Where the median of what was sampled lies with 95 %, whatever is behind the
/// samples (order statistics, by the binomial distribution); from the least to
/// the most where they are too few for that. `None` of fewer than three: they
/// say nothing of their noise.
pub(super) fn interval(samples: &[u64]) -> Option<(u64, u64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let count = sorted.len();
    if count < 3 {
        return None;
    }
    let outside = outside(count);
    Some((sorted[outside], sorted[count - 1 - outside]))
}

/// How many samples on each side the median is beyond with 2.5 % at most.
fn outside(count: usize) -> usize {
    // From here on the powers of two below are too small for a number.
    if count > 1000 {
        let count = count as f64;
        // Positive.
        #[allow(clippy::cast_sign_loss)]
        return (count / 2.0 - 0.98 * count.sqrt()) as usize;
    }
    let (mut chance, mut sum) = (0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX)), 0.0);
    for below in 0..count / 2 {
        sum += chance;
        if sum > 0.025 {
            return below.saturating_sub(1);
        }
        chance *= (count - below) as f64 / (below + 1) as f64;
    }
    (count / 2).saturating_sub(1)
}
