//! The form of the code: formatting, lints and the repository's own rules.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::counts::Counts;
use super::deadline::Deadline;
use super::process::{self, Errors};
use super::suite::Suite;
use crate::cache::workspace_root;
use crate::cargo::cargo;
use crate::progress::{Step, note};
use crate::tidy;

/// Of the suite.
pub(super) const NAME: &str = "style";

/// Each check counts as one test.
pub(super) fn check(deadline: Deadline) -> Result<Suite> {
    let started = Instant::now();
    let mut suite = Suite { name: NAME.into(), place: "here".into(), ..Suite::default() };
    let mut fmt = cargo();
    fmt.args(["fmt", "--all", "--check"]);
    let mut clippy = cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]);
    for (name, command) in [("`cargo fmt --check`", &mut fmt), ("`cargo clippy`", &mut clippy)] {
        let step = Step::start(name);
        run(name, command, deadline, &mut suite)?;
        step.done();
    }
    for rule in tidy::check(&workspace_root())? {
        rule.remarks.iter().for_each(note);
        count(rule.findings.is_empty(), &mut suite.counts);
        suite.output.extend(rule.findings.iter().map(|finding| format!("{}: {finding}", rule.name)));
    }
    suite.took = started.elapsed();
    Ok(suite)
}

fn run(name: &str, command: &mut Command, deadline: Deadline, suite: &mut Suite) -> Result<()> {
    let finished = process::run(command, Errors::Kept, deadline, name)?;
    count(finished.status.success(), &mut suite.counts);
    if !finished.status.success() {
        suite.output.push(format!("{name} ended with {}:", finished.status));
        suite.output.extend(finished.lines);
    }
    Ok(())
}

fn count(good: bool, counts: &mut Counts) {
    if good {
        counts.passed += 1;
    } else {
        counts.failed += 1;
    }
}
