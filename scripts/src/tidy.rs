//! The repository's own rules: what neither the compiler nor clippy can know.

mod code;
mod dependencies;
mod length;
mod links;
mod tree;
mod words;

use std::path::Path;

use anyhow::Result;

use tree::Tree;

/// What became of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The rule in a few words.
    pub name: &'static str,
    /// Places that break it, each with what to do.
    pub findings: Vec<String>,
    /// What is not wrong yet.
    pub remarks: Vec<String>,
}

impl Outcome {
    fn of(name: &'static str, findings: Vec<String>) -> Self {
        Self { name, findings, remarks: Vec::new() }
    }
}

/// Checks every rule on the repository at `root`.
pub fn check(root: &Path) -> Result<Vec<Outcome>> {
    let tree = Tree::read(root)?;
    Ok(vec![
        length::check(&tree),
        code::unsafe_has_one_home(&tree),
        code::nothing_is_unfinished(&tree),
        words::check(&tree),
        links::check(&tree),
        dependencies::check_crates(&tree)?,
        dependencies::check_copies(&tree),
    ])
}
