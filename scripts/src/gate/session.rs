//! Several suites in one session on a KVM host: a host takes longer to come up than most suites run.

use std::ffi::OsString;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::deadline::Deadline;
use super::suite::Suite;
use crate::bed::{self, Ending, HostSpec};

/// Begins a line that is ours among those of the suites.
const MARK: &str = "@lucos-gate";

/// One suite: a name, and the shell command that runs it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) command: String,
}

/// A host and what to run on it.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The host's name, for the report.
    pub(super) place: String,
    pub(super) spec: HostSpec,
    pub(super) steps: Vec<Step>,
}

/// Whether the output is shown while it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Live,
    Never,
}

impl Session {
    /// Runs all steps, whatever becomes of the ones before; each is a suite of the result.
    pub(super) fn run(mut self, show: Show, deadline: Deadline) -> Result<Vec<Suite>> {
        self.spec.timeout = deadline.left();
        let argv: Vec<OsString> = ["sh", "-c", &script(&self.steps)].map(OsString::from).to_vec();
        let mut record = Record::default();
        let ending = bed::run(&self.spec, &argv, &mut |line| {
            if show == Show::Live && !line.starts_with(MARK) && !line.is_empty() {
                eprintln!("  {} | {line}", self.place);
            }
            record.push(line);
        });
        let why = match ending {
            Ok(Ending::Interrupted) => bail!("interrupted in the middle of the tests on {}", self.place),
            Ok(Ending::TimedOut) => "the time limit for the whole run was over".to_owned(),
            Ok(Ending::Exited(code)) => format!("the session ended early, with status {code}"),
            Err(error) => format!("{error:#}"),
        };
        Ok(record.suites(&self.steps, &self.place, &why))
    }
}

/// What a session said, cut into suites.
#[derive(Debug, Default)]
struct Record {
    done: Vec<Done>,
    current: Vec<String>,
    since: Option<Instant>,
}

#[derive(Debug)]
struct Done {
    status: Option<u8>,
    lines: Vec<String>,
    took: Duration,
}

impl Record {
    fn push(&mut self, line: &str) {
        match line.strip_prefix(MARK).map(|words| words.split_whitespace().collect::<Vec<_>>()).as_deref() {
            Some(["begin"]) => {
                self.current.clear();
                self.since = Some(Instant::now());
            }
            Some(["end", status]) => self.finish(status.parse().ok()),
            _ => self.current.push(line.to_owned()),
        }
    }

    fn finish(&mut self, status: Option<u8>) {
        let took = self.since.take().map(|since| since.elapsed()).unwrap_or_default();
        self.done.push(Done { status, lines: std::mem::take(&mut self.current), took });
    }

    /// One suite for each step; those that are missing are missing for the reason `why`.
    fn suites(mut self, steps: &[Step], place: &str, why: &str) -> Vec<Suite> {
        if self.since.is_some() {
            self.finish(None);
        }
        let mut done = self.done.into_iter();
        let suite = |step: &Step| match done.next() {
            Some(Done { status, lines, took }) => {
                let mut suite = Suite::judge(&step.name, place, lines, status, took);
                if status.is_none() {
                    suite.problem = Some(why.to_owned());
                }
                suite.must_test_something()
            }
            None => Suite::broken(&step.name, place, format!("did not run: {why}")),
        };
        steps.iter().map(suite).collect()
    }
}

/// Runs one step after the other. What a step leaves in the middle of a line does not hide the mark behind it.
fn script(steps: &[Step]) -> String {
    let mut script = String::new();
    for step in steps {
        let _ = writeln!(script, "echo '{MARK} begin'");
        let _ = writeln!(script, "( {}\n) 2>&1", step.command);
        let _ = writeln!(script, "printf '\\n{MARK} end %s\\n' $?");
    }
    script
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn step(name: &str, command: &str) -> Step {
        Step { name: name.into(), command: command.into() }
    }

    fn suites(steps: &[Step], script: &str) -> Vec<Suite> {
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        let mut record = Record::default();
        String::from_utf8(output.stdout).unwrap().lines().for_each(|line| record.push(line));
        record.suites(steps, "here", "it was over")
    }

    #[test]
    fn each_step_is_a_suite_whatever_the_others_do() {
        let steps = [
            step("a", "printf '1 passed, 0 failed\nx' >&2; exit 3"),
            step("b", "echo 2 passed, 0 failed # x"),
        ];
        let found = suites(&steps, &script(&steps));
        assert_eq!(found[0].problem.as_deref(), Some("ended with status 3"));
        assert_eq!((found[0].counts.passed, found[1].counts.passed), (1, 2));
        assert!(found[1].is_good());
    }

    #[test]
    fn what_the_end_of_a_session_cuts_off_has_failed() {
        let steps = [step("a", "true"), step("b", "true")];
        let found = suites(&steps, &format!("echo '{MARK} begin'; echo 7 passed, 0 failed"));
        assert_eq!(found[0].problem.as_deref(), Some("it was over"));
        assert_eq!(found[1].problem.as_deref(), Some("did not run: it was over"));
        assert!(found.iter().all(|suite| suite.counts.failed == 1));
    }
}
