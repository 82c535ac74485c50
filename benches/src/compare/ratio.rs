//! How many times as fast one way is as another.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::stats::{interval, median};

/// The other way's time over this one's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the medians: 2 is twice as fast.
    pub times: f64,
    /// From where to where it may be just as well: each median with 95 %, by its
    /// own runs. `None` of fewer than three runs.
    pub spread: Option<(f64, f64)>,
    /// Whether that has room for 1: neither can be called faster.
    pub equal: bool,
}

impl Ratio {
    /// Of the times of runs.
    #[must_use]
    pub fn of(this: &[u64], other: &[u64]) -> Option<Self> {
        let times = |other: u64, this: u64| other as f64 / this.max(1) as f64;
        let (mine, theirs) = (median(this)?, median(other)?);
        let spread = interval(this)
            .zip(interval(other))
            .map(|(this, other)| (times(other.0, this.1), times(other.1, this.0)));
        let equal = match spread {
            Some((low, high)) => low <= 1.0 && 1.0 <= high,
            None => mine == theirs,
        };
        Some(Self { times: times(theirs, mine), spread, equal })
    }

    /// In words: `2.20 times as fast`, `about` that where nothing is known of the
    /// noise.
    #[must_use]
    pub fn words(&self) -> String {
        let about = if self.spread.is_none() { "about " } else { "" };
        match self.times {
            _ if self.equal => "as fast within the noise".to_owned(),
            times @ 1.0.. => format!("{about}{} times as fast", digits(times)),
            times => format!("{about}{} times as slow", digits(1.0 / times.max(f64::MIN_POSITIVE))),
        }
    }
}

/// `2.20x (1.98..2.41)`, `= (0.97..1.02)`; `~2.20x` where nothing is known of the
/// noise.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = digits(self.times);
        f.pad(&match self.spread {
            None => format!("~{times}x"),
            Some((low, high)) if self.equal => format!("= ({}..{})", digits(low), digits(high)),
            Some((low, high)) => format!("{times}x ({}..{})", digits(low), digits(high)),
        })
    }
}

/// Three of them, or one behind the zeros of what is small.
fn digits(times: f64) -> String {
    let behind = match times {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        0.01.. => 3,
        _ => 4,
    };
    format!("{times:.behind$}")
}
