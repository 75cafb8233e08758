//! The hunks of a fix, out of all that differs between two versions of a file.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use similar::{DiffTag, TextDiff};

use super::catalogue::File;
use super::functions::functions;

/// Unchanged lines around a change, as `diff -u` has them.
const CONTEXT: usize = 3;

/// What a line is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner<'a> {
    /// A function of the fix.
    Named(&'a str),
    /// Nothing: it is empty, between others.
    Nobody,
    /// Something else.
    Other,
}

/// A unified diff of what differs between `old` and `new` in the functions of `file`.
///
/// Each of those must differ, and no change may be in one of them and outside of them at once: then the fix is not as the
/// catalogue says.
pub(super) fn between(old: &str, new: &str, file: &File) -> Result<String> {
    let olds: Vec<&str> = old.split_inclusive('\n').collect();
    let news: Vec<&str> = new.split_inclusive('\n').collect();
    let (old_owners, new_owners) = (owners(old, file), owners(new, file));
    let mut found = BTreeSet::new();
    let mut fixed = String::with_capacity(new.len());
    for op in TextDiff::from_slices(&olds, &news).ops() {
        let touched = || old_owners[op.old_range()].iter().chain(&new_owners[op.new_range()]);
        let is_named = |owner: &&Owner<'_>| matches!(owner, Owner::Named(_));
        if op.tag() == DiffTag::Equal || !touched().any(|owner| is_named(&owner)) {
            fixed.extend(olds[op.old_range()].iter().copied());
            continue;
        }
        if touched().any(|owner| *owner == Owner::Other) {
            bail!("{}: the change at line {} goes beyond the functions", file.path, op.old_range().start + 1);
        }
        found.extend(
            touched().filter_map(|owner| if let Owner::Named(name) = owner { Some(*name) } else { None }),
        );
        fixed.extend(news[op.new_range()].iter().copied());
    }
    for name in &file.functions {
        ensure!(found.contains(name.as_str()), "{}: nothing is different in {name}", file.path);
    }
    let (from, to) = (format!("a/{}", file.path), format!("b/{}", file.path));
    let fix = TextDiff::from_lines(old, &fixed);
    Ok(fix.unified_diff().context_radius(CONTEXT).header(&from, &to).to_string())
}

/// The owner of each line.
fn owners<'a>(text: &str, file: &'a File) -> Vec<Owner<'a>> {
    let owner_of = |line: &str| if line.trim().is_empty() { Owner::Nobody } else { Owner::Other };
    let mut owners: Vec<Owner<'a>> = text.lines().map(owner_of).collect();
    for function in functions(text) {
        if let Some(name) = file.functions.iter().find(|name| *name == function.name) {
            owners[function.lines].fill(Owner::Named(name));
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "\
int one(int a)
{
	return a;
}

int two(int a)
{
	return a;
}
";
    const NEW: &str = "\
int one(int a)
{
	return a + 1;
}

static int check(int a)
{
	return a > 0;
}

int two(int a)
{
	if (!check(a))
		return 0;
	return a;
}
";

    fn file(functions: &[&str]) -> File {
        File { path: "a/b.c".into(), functions: functions.iter().map(|&name| name.into()).collect() }
    }

    #[test]
    fn only_the_hunks_of_the_functions_are_taken() {
        let diff = between(OLD, NEW, &file(&["one"])).unwrap();
        assert_eq!(
            diff,
            "--- a/a/b.c\n+++ b/a/b.c\n@@ -1,6 +1,6 @@\n int one(int a)\n {\n-\treturn a;\n+\treturn a + 1;\n }\n \n int two(int a)\n"
        );
        let diff = between(OLD, NEW, &file(&["check", "two"])).unwrap();
        assert!(!diff.contains("a + 1") && diff.contains("+static int check(int a)\n"), "{diff}");
        assert!(diff.contains("+\tif (!check(a))\n"), "{diff}");
    }

    #[test]
    fn a_fix_that_is_not_there_or_elsewhere_is_refused() {
        let error = between(OLD, OLD, &file(&["one"])).unwrap_err().to_string();
        assert_eq!(error, "a/b.c: nothing is different in one");
        let new = NEW.replace("int one(int a)", "int global;\nint one(long a)");
        let error = between(&format!("long global;\n{OLD}"), &new, &file(&["one"])).unwrap_err().to_string();
        assert_eq!(error, "a/b.c: the change at line 1 goes beyond the functions");
    }
}
