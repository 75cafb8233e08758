//! One result.

use serde::Serialize;

use crate::samples::Samples;

/// One result, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// Unique; its first part is the group.
    name: String,
    value: f64,
    unit: &'static str,
    /// How many samples the value is taken from, and the smallest and the largest of them.
    samples: usize,
    low: f64,
    high: f64,
    reference: Option<Reference>,
    /// Value divided by the reference's.
    ratio: Option<f64>,
    aim: Option<Aim>,
    /// Whether the aim is met; `null` without one.
    met: Option<bool>,
}

/// What a value is compared with; measured in the same run and in the same unit, but for the pause figures, whose
/// reference is the I/O exit round trip.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    ValueAtMost(f64),
}

impl Figure {
    /// The median of `samples`.
    pub(crate) fn median(name: impl Into<String>, samples: &Samples, unit: &'static str) -> Self {
        Self::of(name, samples.median(), samples, unit)
    }

    /// Another value that is taken from `samples`.
    pub(crate) fn of(name: impl Into<String>, value: f64, samples: &Samples, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value: rounded(value),
            unit,
            samples: samples.len(),
            low: rounded(samples.low()),
            high: rounded(samples.high()),
            reference: None,
            ratio: None,
            aim: None,
            met: None,
        }
    }

    /// Compares it.
    pub(crate) fn against(mut self, name: impl Into<String>, value: f64) -> Self {
        self.ratio = (value > 0.0).then(|| rounded(self.value / value));
        self.reference = Some(Reference { name: name.into(), value: rounded(value) });
        self
    }

    /// Says what it should be; for a ratio, after [`Figure::against`].
    pub(crate) fn aiming(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self.met = match aim {
            Aim::RatioAtMost(limit) => self.ratio.map(|ratio| ratio <= limit),
            Aim::RatioAtLeast(limit) => self.ratio.map(|ratio| ratio >= limit),
            Aim::ValueAtMost(limit) => Some(self.value <= limit),
        };
        self
    }

    /// Hands it to whoever reads our output.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// Three digits behind the point: less than any of this can be repeated to.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64) -> Figure {
        Figure::median("group.name", &Samples::of(vec![value]), "s")
    }

    #[test]
    fn an_aim_is_met_at_its_limit_and_missed_beyond() {
        let met = |value, reference, aim| figure(value).against("other", reference).aiming(aim).met;
        assert_eq!(met(6.0, 10.0, Aim::RatioAtMost(0.6)), Some(true));
        assert_eq!(met(6.1, 10.0, Aim::RatioAtMost(0.6)), Some(false));
        assert_eq!(met(9.9, 10.0, Aim::RatioAtLeast(1.0)), Some(false));
        assert_eq!(met(5.0, 9.0, Aim::ValueAtMost(5.0)), Some(true));
        assert_eq!(met(5.0, 0.0, Aim::RatioAtMost(0.6)), None);
    }

    #[test]
    fn the_line_has_every_field() {
        let line =
            serde_json::to_value(figure(1.5).against("q35", 3.0).aiming(Aim::RatioAtMost(0.6))).unwrap();
        assert_eq!(line["ratio"], 0.5);
        assert_eq!(line["aim"]["ratio_at_most"], 0.6);
        assert_eq!(line["met"], true);
        let plain = serde_json::to_value(figure(1.5)).unwrap();
        assert!(plain["met"].is_null() && plain["reference"].is_null() && plain["aim"].is_null());
    }
}
