//! A file is about one noun, and short.

use super::Outcome;
use super::tree::{Tree, is_test};

/// From here on a file is worth a remark.
const SOFT: usize = 400;
/// From here on it is too long.
const HARD: usize = 800;

pub(super) fn check(tree: &Tree) -> Outcome {
    let mut outcome = Outcome::of("files are short", Vec::new());
    for (path, text) in tree.rust().filter(|(path, _)| !is_test(path)) {
        let length = without_tests(text);
        let line = |limit| format!("{path} has {length} lines without its tests, {limit}; split it by nouns");
        if length > HARD {
            outcome.findings.push(line(format!("the limit is {HARD}")));
        } else if length > SOFT {
            outcome.remarks.push(line(format!("more than {SOFT} are seldom one noun")));
        }
    }
    outcome
}

/// Lines before the tests at the end of a file.
fn without_tests(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let (code, tests) = ("x\n".repeat(HARD), "x\n".repeat(HARD));
        let whole = format!("{code}#[cfg(test)]\n{tests}");
        let outcome = check(&Tree::of(&[("a/src/b.rs", &whole), ("a/tests/c.rs", &whole), ("a.md", &whole)]));
        assert_eq!((outcome.findings.len(), outcome.remarks.len()), (0, 1));
        let longer = format!("x\n{whole}");
        assert_eq!(check(&Tree::of(&[("a/src/b.rs", &longer)])).findings.len(), 1);
    }
}
