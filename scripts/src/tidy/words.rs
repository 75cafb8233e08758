//! What no file may depend on: addresses are what a machine is set up with, not what a program knows.

use super::Outcome;
use super::tree::Tree;

/// How the names of registries' hosts begin. A machine's own package sources say where packages come from.
const HOSTS: [&str; 4] = ["deb", "index", "static", "registry"];

pub(super) fn check(tree: &Tree) -> Outcome {
    let names = |line: &str| HOSTS.iter().any(|host| line.contains(&format!("://{host}.")));
    let lines =
        tree.files().flat_map(|(path, text)| text.lines().zip(1..).map(move |(line, at)| (path, at, line)));
    let findings = lines.filter(|(.., line)| names(line)).map(|(path, at, _)| {
        format!("{path}:{at}: take packages from the machine's own sources, name no host")
    });
    Outcome::of("no registry is named", findings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_and_other_addresses_are_not() {
        let bad = format!("x\nsee https{}deb.example.org/debian\n", "://");
        let tree = Tree::of(&[("a.md", &bad), ("b.md", "https://example.org/deb.html")]);
        let findings = check(&tree).findings;
        assert!(findings.len() == 1 && findings[0].starts_with("a.md:2:"), "{findings:?}");
    }
}
