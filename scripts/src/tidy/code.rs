//! What code may say where.

use super::Outcome;
use super::tree::{Tree, is_test};

/// Where unsafe code is: one place for each of the two programs that need any.
const UNSAFE_HOMES: [&str; 2] = ["vmm/src/sys/", "guest-agent/src/sys.rs"];

/// Code that is not done, and tests that are not run. A test that takes long has a tier, not this.
const UNFINISHED: [&str; 4] = ["todo!", "unimplemented!", "#[ignore", "allow(dead_code"];

pub(super) fn unsafe_has_one_home(tree: &Tree) -> Outcome {
    let findings = code_lines(tree, |path| !UNSAFE_HOMES.iter().any(|home| path.starts_with(home)))
        .filter(|(_, code)| has_word(code, "unsafe") || code.contains("(unsafe_code"))
        .filter(|(_, code)| !code.contains("forbid(unsafe_code)"))
        .map(|(place, _)| format!("{place}: unsafe code lives in {} only", UNSAFE_HOMES.join(" and ")));
    Outcome::of("unsafe code has one home", findings.collect())
}

pub(super) fn nothing_is_unfinished(tree: &Tree) -> Outcome {
    let find = |code: &str, path: &str| {
        // Each test file takes its own part of what they share.
        UNFINISHED.into_iter().find(|what| code.contains(what) && !(what.ends_with("code") && is_test(path)))
    };
    let findings = code_lines(tree, |_| true).filter_map(|(place, code)| {
        find(&code, &place).map(|what| format!("{place}: finish it, or take it out: {what}"))
    });
    Outcome::of("nothing is unfinished", findings.collect())
}

/// Every line of Rust without comments and string literals, with its place.
fn code_lines(tree: &Tree, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, String)> {
    tree.rust().filter(move |(path, _)| wanted(path)).flat_map(|(path, text)| {
        let lines = text.lines().zip(1..);
        lines.map(move |(line, number)| (format!("{path}:{number}"), code_of(line)))
    })
}

/// `line` without what is in it as text. Literals over several lines are taken for code, which can at worst find
/// too much.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut rest = line.chars().peekable();
    let mut within = false;
    while let Some(character) = rest.next() {
        match character {
            '\\' if within => drop(rest.next()),
            '"' => within = !within,
            '/' if !within && rest.peek() == Some(&'/') => break,
            '\'' if !within && rest.peek() == Some(&'"') => drop(rest.next()),
            _ if within => {}
            other => code.push(other),
        }
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|each| each == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_code() {
        assert_eq!(code_of(r#"a("x \" // y", '"') // z"#), "a(, ') ");
        assert!(!has_word(&code_of("unsafe_code // unsafe"), "unsafe"));
    }

    #[test]
    fn unsafe_code_is_found_outside_its_home() {
        let text = "unsafe { x }\nlet a = \"unsafe\";\n";
        let files = ["vmm/src/sys/a.rs", "guest-agent/src/sys.rs", "vmm/src/b.rs", "guest-agent/src/a.rs"];
        let outcome = unsafe_has_one_home(&Tree::of(&files.map(|path| (path, text))));
        let places: Vec<&str> =
            outcome.findings.iter().filter_map(|finding| finding.split(": ").next()).collect();
        assert_eq!(places, ["vmm/src/b.rs:1", "guest-agent/src/a.rs:1"]);
    }

    #[test]
    fn unfinished_code_is_found() {
        let tree = Tree::of(&[
            ("a/src/b.rs", "todo!()\n/// todo!\n#[ignore = \"slow\"]\n"),
            ("a/tests/common/mod.rs", "#![allow(dead_code)]\n"),
        ]);
        assert_eq!(nothing_is_unfinished(&tree).findings.len(), 2);
    }
}
