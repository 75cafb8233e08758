//! What the documentation points at is there.

use super::Outcome;
use super::tree::Tree;

/// Folders at the top: a code span that begins with one of them is a path.
const TOP: [&str; 10] = [
    ".cargo/",
    ".ci/",
    "abi/",
    "docs/",
    "guest-agent/",
    "patches/",
    "scripts/",
    "tests/",
    "update-server/",
    "vmm/",
];

pub(super) fn check(tree: &Tree) -> Outcome {
    let mut findings = Vec::new();
    for (path, text) in tree.files().filter(|(path, _)| path.strip_suffix(".md").is_some()) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, at) in text.lines().zip(1..) {
            let missing = targets(line, folder).into_iter().filter(|target| !tree.has(target));
            findings.extend(missing.map(|target| format!("{path}:{at}: there is no {target}")));
        }
    }
    Outcome::of("documents point at what is there", findings)
}

/// Paths from the top that `line`, of a document in `folder`, names: links, and code spans that look like one.
fn targets(line: &str, folder: &str) -> Vec<String> {
    let spans = line.split('`').skip(1).step_by(2).flat_map(expand);
    let spans = spans.filter(|span| TOP.iter().any(|top| span.starts_with(top)) && is_plain(span));
    let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let links = links.filter(|link| !link.is_empty() && !link.contains("://")).map(|link| join(folder, link));
    spans.chain(links).collect()
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`.
fn expand(span: &str) -> Vec<String> {
    let parts = span.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    match parts {
        Some((head, (names, tail))) => {
            names.split(',').map(|name| format!("{head}{}{tail}", name.trim())).collect()
        }
        None => vec![span.to_owned()],
    }
}

/// Whether it is one path and no pattern or command.
fn is_plain(span: &str) -> bool {
    span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

fn join(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths_in_code_are_targets() {
        let line = "see [x](../README.md#y), [z](https://example.org/), `vmm/src/a.rs`, `vmm/{b,c}.rs`, `vmm/*.rs`, `d/e`";
        assert_eq!(targets(line, "docs"), ["vmm/src/a.rs", "vmm/b.rs", "vmm/c.rs", "README.md"]);
    }

    #[test]
    fn a_missing_target_is_found_with_its_place() {
        let tree = Tree::of(&[("A.md", "`vmm/src`\n`vmm/none.rs`"), ("vmm/src/lib.rs", "")]);
        assert_eq!(check(&tree).findings, ["A.md:2: there is no vmm/none.rs"]);
    }
}
