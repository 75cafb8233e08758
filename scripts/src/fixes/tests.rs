//! The catalogue, held against what else is known of its fixes.

use super::*;
use crate::images;
use crate::kernels::{Flavour, Need, Series};

/// Patches of the same fixes that somebody else has made.
fn corpus() -> PathBuf {
    let named = std::env::var_os("LUCOS_CORPUS").map(PathBuf::from);
    named.unwrap_or_else(|| crate::cache::workspace_root().join("../shared/corpus")).join("fixes")
}

/// A part of a diff: where it begins in the old file, what is there, and what it becomes. One change can be written down as
/// different lines that go and come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hunk<'a> {
    line: &'a str,
    old: Vec<&'a str>,
    new: Vec<&'a str>,
}

fn hunks_of(diff: &str) -> Vec<Hunk<'_>> {
    let mut hunks: Vec<Hunk<'_>> = Vec::new();
    for line in diff.lines() {
        if let Some(place) = line.strip_prefix("@@ -") {
            let line = place.split(',').next().unwrap();
            hunks.push(Hunk { line, ..Hunk::default() });
        } else if let Some(hunk) = hunks.last_mut().filter(|_| !line.starts_with("--- ")) {
            let (kind, text) = line.split_at_checked(1).unwrap_or((" ", ""));
            if kind != "+" {
                hunk.old.push(text);
            }
            if kind != "-" {
                hunk.new.push(text);
            }
        }
    }
    hunks
}

#[test]
fn patches_are_those_of_the_corpus() {
    const TEST: &str = "fixes::tests::patches_are_those_of_the_corpus";
    let (fixes, corpus) = (catalogue().unwrap(), corpus());
    let cache = Cache::open().unwrap();
    let place = place(&cache, &fixes);
    let Ok(patches) = fs::read_dir(&corpus) else {
        println!("SKIPPED: {TEST}: no corpus in {}; LUCOS_CORPUS names another folder", corpus.display());
        return;
    };
    if !place.exists() {
        println!("SKIPPED: {TEST}: the patches are not made; `cargo xtask image fixes` makes them");
        return;
    }
    let patches: Vec<PathBuf> = patches.map(|file| file.unwrap().path()).collect();
    for fix in fixes {
        let cve = &fix.fixes[0];
        let is_it =
            |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&format!("{cve}-"));
        let theirs = patches.iter().find(is_it).unwrap_or_else(|| panic!("{cve} is not in the corpus"));
        let (ours, theirs) = (place.join(file_name(&fix)), fs::read_to_string(theirs).unwrap());
        let ours = fs::read_to_string(ours).unwrap();
        assert!(!hunks_of(&ours).is_empty(), "{}", fix.name);
        assert_eq!(hunks_of(&ours), hunks_of(&theirs), "{}", fix.name);
    }
}

#[test]
fn each_fix_closes_a_hole_of_its_own_that_can_be_shown() {
    let program = include_str!("../../guest/holes/holes.c");
    let table = program.split_once("HOLES[] = {").and_then(|(_, rest)| rest.split_once("};")).unwrap().0;
    let shown: BTreeSet<&str> = table.split('"').skip(1).step_by(2).collect();
    let fixes = catalogue().unwrap();
    let closed: BTreeSet<&str> = fixes.iter().map(|fix| fix.hole.as_str()).collect();
    assert_eq!(closed, shown);
    // The tests know a fix by what it closes.
    assert!(fixes.iter().all(|fix| fix.name == fix.hole));
}

#[test]
fn each_fix_is_for_the_kernel_that_holes_are_shown_on() {
    for fix in catalogue().unwrap() {
        let need = Need::exactly(Series::V6_1, Flavour::Cloud, &fix.source.vulnerable);
        assert_eq!(need, images::vulnerable_kernel(), "{}", fix.name);
        let coexists = fix.policy.consistency == "coexist";
        assert_eq!(fix.policy.coexist_is_safe.is_some(), coexists, "{}", fix.name);
    }
}
