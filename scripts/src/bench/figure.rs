//! One result, as `lucos-bench` prints it.

use serde::{Deserialize, Serialize};

/// One result. The program in the host defines what the fields mean; here they are only passed on and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: String,
    pub(super) samples: usize,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) reference: Option<Reference>,
    pub(super) ratio: Option<f64>,
    pub(super) aim: Option<Aim>,
    pub(super) met: Option<bool>,
}

/// What a value is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) value: f64,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aim {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    ValueAtMost(f64),
}

impl Figure {
    /// The figure in a line of output, if it is one.
    pub(super) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}
