//! The file with the result of the last full run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::report::Report;
use crate::cache::{workspace_root, write_atomically};
use crate::command::{command, run};

/// Begins the line that names the commit.
const COMMIT: &str = "- commit: ";

fn place() -> PathBuf {
    workspace_root().join("tests/RESULTS.md")
}

/// Writes the file anew.
pub(super) fn write(report: &Report, took: &str) -> Result<PathBuf> {
    let date = run(command("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]), "ask for the date")?;
    let commit = run(git().args(["rev-parse", "HEAD"]), "ask git for the commit")?;
    let dirty = run(git().args(["status", "--porcelain"]), "ask git for uncommitted changes")?;
    let dirty = if dirty.trim().is_empty() { "" } else { ", with changes that were not committed" };
    let text = format!(
        "# The last full run\n\n\
         Written by `cargo xtask test --full`, which runs the tests on every host of the test bed.\n\n\
         - date: {}\n{COMMIT}{}{dirty}\n- took: {took}\n- outcome: {}\n\n```text\n{}```\n",
        date.trim(),
        commit.trim(),
        report.counts(),
        report.text()
    );
    let place = place();
    write_atomically(&place, text)?;
    Ok(place)
}

/// How old the last full run is, in words.
pub(super) fn age() -> String {
    let text = fs::read_to_string(place()).unwrap_or_default();
    let Some(commit) = commit(&text) else {
        return "there has been no full run yet; `cargo xtask test --full` is one".to_owned();
    };
    match since(commit) {
        Ok(0) => format!("the last full run was at this commit, {commit}"),
        Ok(count) => format!("the last full run was {count} commits ago, at {commit}"),
        Err(_) => format!("the last full run was at commit {commit}, which is not in this history"),
    }
}

fn commit(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix(COMMIT))?;
    line.split([' ', ',']).next()
}

fn since(commit: &str) -> Result<u64> {
    let range = format!("{commit}..HEAD");
    let count = run(git().args(["rev-list", "--count", &range]), "count commits")?;
    count.trim().parse().context("git counts in words")
}

fn git() -> Command {
    let mut git = command("git");
    git.current_dir(workspace_root());
    git
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_read_back() {
        assert_eq!(commit("# x\n- date: y\n- commit: 12ab, with changes\n"), Some("12ab"));
        assert_eq!(commit("no such line"), None);
    }
}
