//! What the doctor says.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Good,
    /// Guests run, but something is slower or cannot be done.
    Lacking,
    /// No stock guest runs.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; stable, for programs.
    pub name: &'static str,
    /// How bad it is.
    pub mark: Mark,
    /// What was found.
    pub found: String,
    /// What to do about it; only where something is missing.
    pub advice: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether an unmodified Linux boots here.
    pub can_run_stock_guests: bool,
    /// Whether writes can be trapped one vCPU at a time.
    pub has_second_view: bool,
    /// The findings, in the order in which they build on each other.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.mark {
                Mark::Good => "✓",
                Mark::Lacking => "!",
                Mark::Broken => "✗",
            };
            writeln!(out, "{mark} {:<14} {}", finding.name, finding.found)?;
            if let Some(advice) = &finding.advice {
                writeln!(out, "  {:<14} → {advice}", "")?;
            }
        }
        let verdict = match (self.can_run_stock_guests, self.has_second_view) {
            (true, true) => "This host can run stock guests.",
            (true, false) => "This host can run stock guests, but not every patch of data will be fast.",
            (false, _) => "This host cannot run stock guests.",
        };
        writeln!(out, "\n{verdict}")
    }
}
