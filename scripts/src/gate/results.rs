//! The files with the results of the last full run, one for each place where tests run.
//!
//! A full run takes hours on emulated hosts, and a place's tests say nothing of another's: each file is written when its
//! place is through and names the commit that it speaks of.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{Report, seconds};
use super::suite::Suite;
use crate::cache::{workspace_root, write_atomically};
use crate::command::{command, run};

/// Begins the line that names the commit.
const COMMIT: &str = "- commit: ";

fn folder() -> PathBuf {
    workspace_root().join("tests/results")
}

/// Writes the file of the place where `suites` ran anew.
pub(super) fn write(suites: &[Suite]) -> Result<PathBuf> {
    let place = &suites.first().context("nothing was run")?.place;
    let date = run(command("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]), "ask for the date")?;
    let commit = run(git().args(["rev-parse", "HEAD"]), "ask git for the commit")?;
    // What this run has written of other places is no change of what was tested.
    let mut status = git();
    status.args(["status", "--porcelain", "--", ".", ":!tests/results"]);
    let dirty = run(&mut status, "ask git for uncommitted changes")?;
    let dirty = if dirty.trim().is_empty() { "" } else { ", with changes that were not committed" };
    let report = Report::of(suites);
    let text = format!(
        "# The last full run: {place}\n\n\
         Written by `cargo xtask test --full`.\n\n\
         - date: {}\n{COMMIT}{}{dirty}\n- took: {}\n- outcome: {}\n\n```text\n{}```\n",
        date.trim(),
        commit.trim(),
        seconds(suites.iter().map(|suite| suite.took).sum()),
        report.counts(),
        report.text()
    );
    let file = folder().join(file_name(place));
    fs::create_dir_all(folder()).with_context(|| format!("cannot make {}", folder().display()))?;
    write_atomically(&file, text)?;
    Ok(file)
}

/// `AMD host 6.1` is `amd-host-6.1.md`.
fn file_name(place: &str) -> String {
    let words: Vec<String> =
        place.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    format!("{}.md", words.join("-"))
}

/// How old the last full run is, place by place, in words.
pub(super) fn age() -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(folder())
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    let mut text = String::new();
    for file in files {
        let content = fs::read_to_string(&file).unwrap_or_default();
        let Some(commit) = commit(&content) else { continue };
        let place = file.file_stem().unwrap_or_default().to_string_lossy();
        let when = match since(commit) {
            Ok(0) => "at this commit".to_owned(),
            Ok(count) => format!("{count} commits ago"),
            Err(_) => format!("at commit {commit}, which is not in this history"),
        };
        let separator = if text.is_empty() { "the last full run was, " } else { ", " };
        let _ = write!(text, "{separator}{place}: {when}");
    }
    if text.is_empty() {
        "there has been no full run yet; `cargo xtask test --full` is one".to_owned()
    } else {
        text
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

    #[test]
    fn a_place_has_a_file_of_its_own() {
        assert_eq!(file_name("AMD host 6.12"), "amd-host-6.12.md");
        assert_eq!(file_name("AMD host, five-level paging"), "amd-host-five-level-paging.md");
    }
}
