//! What is said at the end of a run.

use std::fmt::Write;
use std::time::Duration;

use super::counts::Counts;
use super::suite::Suite;

/// How much of a failed suite's output is repeated; a test that fails in a loop must not drown the others.
const LAST_LINES: usize = 400;

/// Everything that was run.
#[derive(Debug, Default)]
pub(super) struct Report {
    suites: Vec<Suite>,
}

impl Report {
    /// Adds one; says at once when it failed.
    pub(super) fn add(&mut self, suite: Suite) {
        let Suite { name, place, counts, took, problem, output, .. } = &suite;
        if !suite.is_good() {
            let from = output.len().saturating_sub(LAST_LINES);
            eprintln!("---- {name} ({place}) failed; the output:");
            output[from..].iter().for_each(|line| eprintln!("  | {line}"));
        }
        let problem = problem.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        if counts.total() > 0 {
            eprintln!("{name}, {place}: {counts}{problem} in {}", seconds(*took));
        }
        self.suites.push(suite);
    }

    /// A report of suites that were added to another one.
    pub(super) fn of(suites: &[Suite]) -> Self {
        Self { suites: suites.to_vec() }
    }

    pub(super) fn suites(&self) -> &[Suite] {
        &self.suites
    }

    /// All together.
    pub(super) fn counts(&self) -> Counts {
        self.suites.iter().map(|suite| suite.counts).sum()
    }

    /// The table of suites, what was skipped, what was tried twice, and what was left out.
    pub(super) fn text(&self) -> String {
        let mut text = self.table();
        let skipped: Vec<_> = self.suites.iter().flat_map(|suite| &suite.skipped).collect();
        if !skipped.is_empty() {
            text.push_str("\nSkipped:\n");
            for each in skipped {
                let _ = writeln!(text, "  {}: {}", each.test, each.why);
            }
        }
        let second_tries: Vec<_> = self.suites.iter().flat_map(|suite| &suite.second_tries).collect();
        if !second_tries.is_empty() {
            text.push_str("\nTried a second time, on an emulated host:\n");
            for each in second_tries {
                let _ = writeln!(text, "  {each}");
            }
        }
        let left_out: Vec<_> = self.suites.iter().filter(|suite| !suite.left_out.is_empty()).collect();
        if !left_out.is_empty() {
            text.push_str("\nLeft out:\n");
            for suite in left_out {
                let _ = writeln!(text, "  of {}, {}:", suite.name, suite.place);
                suite.left_out.iter().for_each(|line| {
                    let _ = writeln!(text, "    {line}");
                });
            }
        }
        text
    }

    /// One row for each suite that had a test, in the order run.
    pub(super) fn table(&self) -> String {
        let rows: Vec<&Suite> = self.suites.iter().filter(|suite| suite.counts.total() > 0).collect();
        let width =
            |of: fn(&Suite) -> &str, least| rows.iter().map(|s| of(s).len()).max().unwrap_or(0).max(least);
        let (name, place) = (width(|suite| &suite.name, 5), width(|suite| &suite.place, 5));
        let mut text = format!("{:name$}  {:place$}  passed  failed  skipped      time\n", "suite", "where");
        for suite in rows {
            let Counts { passed, failed, skipped } = suite.counts;
            let problem = suite.problem.as_ref().map(|why| format!("  {why}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "{:name$}  {:place$}  {passed:6}  {failed:6}  {skipped:7}  {:>8}{problem}",
                suite.name,
                suite.place,
                seconds(suite.took)
            );
        }
        text
    }
}

/// A time as short as it is useful.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_suite_with_tests() {
        let mut report = Report::default();
        let output = |line: &str| vec![line.to_owned(), "left out, 1 tests:".to_owned()];
        report.add(Suite::judge("a", "here", output("2 passed, 0 failed"), Some(0), Duration::from_secs(1)));
        report.add(Suite::judge("none", "here", output("0 passed, 0 failed"), Some(0), Duration::ZERO));
        report.add(Suite::broken("b", "the AMD host", "there is none"));
        let table = report.table();
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(
            table.contains("b      the AMD host       0       1        0     0.0 s  there is none"),
            "{table}"
        );
        assert!(report.text().contains("left out, 1 tests:"));
        assert_eq!(report.counts(), Counts { passed: 2, failed: 1, skipped: 0 });
    }
}
