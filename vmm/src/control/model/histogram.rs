//! Durations by powers of two.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The last bucket takes everything from 2^30 microseconds (18 minutes) on.
const BUCKETS: usize = 32;

/// Counts of durations in buckets that double, from less than 1 microsecond on.
///
/// Fixed in size and without floating point, so that recording one is a few instructions anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Table", into = "Table")]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum_us: u64,
    max_us: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket_of(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The longest duration, in microseconds.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// The mean duration in whole microseconds, if there is any.
    pub fn mean_us(&self) -> Option<u64> {
        self.sum_us.checked_div(self.count())
    }

    /// The buckets that hold something, shortest durations first.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(index, &count)| Bucket { from_us: start_of(index), count })
    }
}

/// The bucket of a duration: 0 holds 0, and bucket i holds [2^(i-1), 2^i).
fn bucket_of(us: u64) -> usize {
    let bits = u64::BITS - us.leading_zeros();
    usize::try_from(bits).map_or(BUCKETS - 1, |bits| bits.min(BUCKETS - 1))
}

fn start_of(index: usize) -> u64 {
    if index == 0 { 0 } else { 1 << (index - 1) }
}

/// One bucket: durations from `from_us` to less than twice that (from 0: less than 1 microsecond).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// The shortest duration that it takes, in microseconds: 0 or a power of two.
    pub from_us: u64,
    /// How many it holds.
    pub count: u64,
}

/// A histogram on the wire: only the buckets that hold something.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Histogram)]
pub(super) struct Table {
    /// How many durations were counted.
    count: u64,
    /// All durations together, in microseconds.
    sum_us: u64,
    /// The longest duration, in microseconds.
    max_us: u64,
    /// The buckets that hold something, shortest durations first.
    buckets: Vec<Bucket>,
}

impl From<Histogram> for Table {
    fn from(histogram: Histogram) -> Self {
        Self {
            count: histogram.count(),
            sum_us: histogram.sum_us,
            max_us: histogram.max_us,
            buckets: histogram.buckets().collect(),
        }
    }
}

impl From<Table> for Histogram {
    fn from(table: Table) -> Self {
        let mut histogram = Self { sum_us: table.sum_us, max_us: table.max_us, ..Self::default() };
        for bucket in table.buckets {
            let count = &mut histogram.counts[bucket_of(bucket.from_us)];
            *count = count.saturating_add(bucket.count);
        }
        histogram
    }
}

impl utoipa::PartialSchema for Histogram {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        Table::schema()
    }
}

impl ToSchema for Histogram {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        Table::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_bucket_that_names_them() {
        let mut histogram = Histogram::default();
        for us in [0, 1, 2, 3, 4, 1000, u64::from(u32::MAX) * 4] {
            histogram.record(Duration::from_micros(us));
        }
        let buckets: Vec<_> = histogram.buckets().map(|bucket| (bucket.from_us, bucket.count)).collect();
        assert_eq!(buckets, [(0, 1), (1, 1), (2, 2), (4, 1), (512, 1), (1 << 30, 1)]);
        assert_eq!((histogram.count(), histogram.max_us()), (7, u64::from(u32::MAX) * 4));
        assert_eq!(Histogram::default().mean_us(), None);
    }

    #[test]
    fn the_wire_form_loses_nothing() {
        let mut histogram = Histogram::default();
        for us in 0..5000 {
            histogram.record(Duration::from_micros(us));
        }
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
    }
}
