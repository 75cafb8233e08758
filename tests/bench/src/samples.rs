//! Samples of one quantity.

use std::time::Duration;

/// At least one number, sorted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Takes samples in any order; none at all counts as one of zero.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        if samples.is_empty() {
            samples.push(0.0);
        }
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    /// Times in seconds.
    pub(crate) fn seconds(times: &[Duration]) -> Self {
        Self::of(times.iter().map(Duration::as_secs_f64).collect())
    }

    /// Times in microseconds.
    pub(crate) fn micros(times: &[Duration]) -> Self {
        Self::of(times.iter().map(|time| time.as_secs_f64() * 1e6).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn low(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn high(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[half] } else { f64::midpoint(self.0[half - 1], self.0[half]) }
    }

    pub(crate) fn mean(&self) -> f64 {
        // The count of samples is far below what a float holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
        let count = self.0.len() as f64;
        self.0.iter().sum::<f64>() / count
    }

    /// The smallest sample that at least `percent` in 100 are not above.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len());
        self.0[rank - 1]
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Samples::of(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples::of(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Samples::of(Vec::new()).median(), 0.0);
    }

    #[test]
    fn percentiles_are_samples() {
        let samples = Samples::of((1..=100_u8).map(f64::from).collect());
        assert_eq!(
            (samples.percentile(99), samples.percentile(100), samples.percentile(0)),
            (99.0, 100.0, 1.0)
        );
        assert_eq!(Samples::of(vec![7.0]).percentile(99), 7.0);
        assert_eq!((samples.low(), samples.high(), samples.len()), (1.0, 100.0, 100));
    }
}
