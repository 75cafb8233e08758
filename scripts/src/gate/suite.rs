//! One test program's run and what came of it.

use std::time::Duration;

use super::counts::Counts;

/// A finished suite.
#[derive(Debug, Clone, Default)]
pub(super) struct Suite {
    /// What was run.
    pub(super) name: String,
    /// Where it was run: `here`, or on which host.
    pub(super) place: String,
    pub(super) counts: Counts,
    pub(super) took: Duration,
    /// What went wrong besides failed tests.
    pub(super) problem: Option<String>,
    /// Tests that could not run, each with the reason.
    pub(super) skipped: Vec<Skipped>,
    /// Tests that were tried a second time, each with how it failed the first time.
    pub(super) second_tries: Vec<String>,
    /// What its runner says of tests that it was not asked for.
    pub(super) left_out: Vec<String>,
    /// All that it said.
    pub(super) output: Vec<String>,
}

/// A test that found something missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) test: String,
    pub(super) why: String,
}

impl Skipped {
    /// Reads `SKIPPED: TEST: REASON`, which a test prints when it cannot do its work here.
    ///
    /// libtest may be in the middle of a line of its own when that is printed.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("SKIPPED: ")?;
        let (test, why) = rest.split_once(": ").unwrap_or((rest, ""));
        Some(Self { test: test.trim().to_owned(), why: why.trim().to_owned() })
    }
}

impl Suite {
    /// Judges a run by its output and `status`, both of which must say that all is well.
    pub(super) fn judge(
        name: &str,
        place: &str,
        output: Vec<String>,
        status: Option<u8>,
        took: Duration,
    ) -> Self {
        let mut suite = Self { name: name.into(), place: place.into(), took, ..Self::default() };
        let closing: Vec<Counts> = output.iter().filter_map(|line| Counts::of_closing_line(line)).collect();
        suite.counts = closing.iter().copied().sum();
        suite.skipped = output.iter().filter_map(|line| Skipped::parse(line)).collect();
        let second = |line: &String| line.strip_prefix("SECOND TRY: ").map(str::to_owned);
        suite.second_tries = output.iter().filter_map(second).collect();
        suite.left_out = left_out(&output);
        suite.output = output;
        suite.problem = match status {
            None => Some("did not run to its end".to_owned()),
            Some(_) if closing.is_empty() => Some("ended without a closing line".to_owned()),
            Some(code) if code != 0 && suite.counts.failed == 0 => Some(format!("ended with status {code}")),
            Some(_) => None,
        };
        suite.settle()
    }

    /// A suite that could not even begin.
    pub(super) fn broken(name: &str, place: &str, why: impl Into<String>) -> Self {
        let broken =
            Self { name: name.into(), place: place.into(), problem: Some(why.into()), ..Self::default() };
        broken.settle()
    }

    /// Takes for a problem that nothing was tested.
    pub(super) fn must_test_something(mut self) -> Self {
        if self.problem.is_none() && self.counts.passed + self.counts.failed == 0 {
            self.problem = Some("ran no test".to_owned());
            self.counts.failed += 1;
        }
        self
    }

    fn settle(mut self) -> Self {
        // libtest has no word for a test that skips itself, and counts it as passed; other runners name it and
        // count it, too.
        let uncounted = self.skipped.len().saturating_sub(self.counts.skipped).min(self.counts.passed);
        self.counts.passed -= uncounted;
        self.counts.skipped += uncounted;
        if self.problem.is_some() {
            self.counts.failed += 1;
        }
        self
    }

    pub(super) fn is_good(&self) -> bool {
        self.counts.failed == 0
    }
}

/// The block that system tests end with: `left out, 2 tests:` and a line for each, further in.
fn left_out(output: &[String]) -> Vec<String> {
    let mut block = output.iter().skip_while(|line| !line.starts_with("left out, "));
    let first = block.next().cloned();
    first.into_iter().chain(block.take_while(|line| line.starts_with("  ")).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(output: &str, status: Option<u8>) -> Suite {
        Suite::judge("s", "here", output.lines().map(Into::into).collect(), status, Duration::ZERO)
    }

    const CLOSING: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_good_end_needs_a_closing_line_and_a_status() {
        assert!(judge(CLOSING, Some(0)).is_good());
        for (output, status, why) in
            [("", Some(0), "closing line"), (CLOSING, Some(1), "status 1"), (CLOSING, None, "to its end")]
        {
            let suite = judge(output, status);
            assert_eq!(suite.counts.failed, 1);
            assert!(suite.problem.unwrap().contains(why));
        }
        let failed = judge("1 passed, 2 failed", Some(1));
        assert_eq!((failed.counts.failed, failed.problem), (2, None));
    }

    #[test]
    fn tests_that_skip_themselves_are_not_passed() {
        let suite = judge(&format!("test a ... SKIPPED: a::b: no tap: EPERM\n{CLOSING}"), Some(0));
        assert_eq!(suite.counts, Counts { passed: 2, failed: 0, skipped: 1 });
        assert_eq!(suite.skipped, [Skipped { test: "a::b".into(), why: "no tap: EPERM".into() }]);
        let counted = judge("SKIPPED: a: b\n2 passed, 0 failed, 1 skipped", Some(0));
        assert_eq!(counted.counts, Counts { passed: 2, failed: 0, skipped: 1 });
    }

    #[test]
    fn second_tries_are_kept() {
        let suite = judge(&format!("{CLOSING}\nSECOND TRY: a::b: it hung"), Some(0));
        assert_eq!(suite.second_tries, ["a::b: it hung"]);
    }

    #[test]
    fn what_was_left_out_is_the_block_that_says_so() {
        let suite = judge(&format!("{CLOSING}\nleft out, 2 tests:\n  [full] a\n  [full] b\nend"), Some(0));
        assert_eq!(suite.left_out, ["left out, 2 tests:", "  [full] a", "  [full] b"]);
    }

    #[test]
    fn no_test_at_all_can_be_a_failure() {
        let none = "0 passed, 0 failed, 2 skipped";
        assert!(judge(none, Some(0)).is_good());
        assert!(!judge(none, Some(0)).must_test_something().is_good());
    }
}
