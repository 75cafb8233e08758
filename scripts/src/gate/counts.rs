//! How many tests passed, as their runner's closing line says.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;

/// Tests by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Counts {
    /// Reads the closing line of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`) or the plain one
    /// (`3 passed, 0 failed, 1 skipped`); `None` for every other line.
    pub(super) fn of_closing_line(line: &str) -> Option<Self> {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("test result: ") {
            let (_, counts) = rest.split_once(". ")?;
            return Self::of_parts(counts.split(';').filter(|part| !part.contains("finished in")));
        }
        let counts = line.split_once(": ").map_or(line, |(_, counts)| counts);
        Self::of_parts(counts.split(','))
    }

    fn of_parts<'a>(parts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut passed, mut failed, mut skipped) = (None, None, 0);
        for part in parts {
            let (number, word) = part.trim().split_once(' ')?;
            let number = number.parse().ok()?;
            match word {
                "passed" => passed = Some(number),
                "failed" => failed = Some(number),
                "skipped" | "ignored" => skipped += number,
                // Of benchmarks there are none, and what a filter took out was not asked for.
                "measured" | "filtered out" => {}
                _ => return None,
            }
        }
        Some(Self { passed: passed?, failed: failed?, skipped })
    }

    /// How many there were.
    pub(super) fn total(self) -> usize {
        self.passed + self.failed + self.skipped
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, each| {
            sum += each;
            sum
        })
    }
}

/// The plain closing line.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: usize, failed: usize, skipped: usize) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn libtest_and_plain_lines_are_read() {
        let read = Counts::of_closing_line;
        let libtest =
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.02s";
        assert_eq!(read(libtest), Some(counts(3, 0, 1)));
        assert_eq!(
            read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"),
            Some(counts(1, 2, 0))
        );
        assert_eq!(read("12 passed, 1 failed, 2 skipped"), Some(counts(12, 1, 2)));
        assert_eq!(read("gate: 12 passed, 0 failed"), Some(counts(12, 0, 0)));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "",
            "test a ... ok",
            "3 passed",
            "3 tests passed, 0 failed",
            "test result: ok.",
            "a, b",
            "x passed, 0 failed",
        ] {
            assert_eq!(Counts::of_closing_line(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for each in [Counts { passed: 3, failed: 1, skipped: 0 }, Counts { passed: 0, failed: 0, skipped: 9 }]
        {
            assert_eq!(Counts::of_closing_line(&each.to_string()), Some(each));
        }
    }
}
