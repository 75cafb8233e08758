//! Several suites in one session on a KVM host: a host takes longer to come up than most suites run.

use std::ffi::OsString;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::deadline::Deadline;
use super::suite::Suite;
use crate::bed::{self, Ending, Host, HostSpec};
use crate::progress;

/// Begins a line that is ours among those of the suites.
const MARK: &str = "@lucos-gate";

/// How much is shown of what a suite said that did not end and was not watched.
const LAST_LINES: usize = 100;

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
    ///
    /// When an emulated host itself dies, what it did not finish is run once more on another: that says nothing of the
    /// step under way, and less of those behind it.
    pub(super) fn run(&self, show: Show, deadline: Deadline) -> Result<Vec<Suite>> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        let (mut suites, why) = self.on_a_host(&self.steps, show, deadline)?;
        let rest = &self.steps[suites.len()..];
        let Some(first) = rest.first() else { return Ok(suites) };
        if !matches!(self.spec.host().0, Host::Emulated(_)) || deadline.left().is_zero() {
            suites.extend(rest.iter().map(|step| Suite::broken(&step.name, &self.place, &why)));
            return Ok(suites);
        }
        progress::note(format!("{} died in {}: {why}", self.place, first.name));
        progress::note(format!("{} of {} suites are run on another host", rest.len(), self.steps.len()));
        let (mut again, why_again) = self.on_a_host(rest, show, deadline)?;
        let missing = &rest[again.len()..];
        again.extend(missing.iter().map(|step| Suite::broken(&step.name, &self.place, &why_again)));
        again[0].second_tries.push(format!("{}, {}: the host died: {why}", first.name, self.place));
        suites.extend(again);
        Ok(suites)
    }

    /// Runs `steps` on a fresh host; returns the suites that ended, and why there are no more.
    fn on_a_host(&self, steps: &[Step], show: Show, deadline: Deadline) -> Result<(Vec<Suite>, String)> {
        let spec = HostSpec { timeout: deadline.left(), ..self.spec.clone() };
        let argv: Vec<OsString> = ["sh", "-c", &script(steps)].map(OsString::from).to_vec();
        let mut record = Record::default();
        let ending = bed::run(&spec, &argv, &mut |line| {
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
        if record.since.is_some() && show == Show::Never {
            let from = record.current.len().saturating_sub(LAST_LINES);
            record.current[from..].iter().for_each(|line| eprintln!("  {} | {line}", self.place));
        }
        Ok((record.suites(steps, &self.place), why))
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

    /// One suite for each step that ended.
    fn suites(self, steps: &[Step], place: &str) -> Vec<Suite> {
        let judge = |(step, done): (&Step, Done)| {
            Suite::judge(&step.name, place, done.lines, done.status, done.took).must_test_something()
        };
        steps.iter().zip(self.done).map(judge).collect()
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
        record.suites(steps, "here")
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
    fn what_the_end_of_a_session_cuts_off_is_no_suite() {
        let steps = [step("a", "true"), step("b", "true")];
        let cut =
            format!("echo '{MARK} begin'; echo 7 passed, 0 failed; echo '{MARK} end 0'; echo '{MARK} begin'");
        let found = suites(&steps, &cut);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].counts.passed), ("a", 7));
    }
}
