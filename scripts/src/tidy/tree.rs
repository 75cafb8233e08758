//! The text files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Every text file, by its path from the top, in order.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: PathBuf,
    files: Vec<(String, String)>,
}

impl Tree {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self { root: root.to_owned(), files: Vec::new() };
        tree.folder(root)?;
        tree.files.sort();
        Ok(tree)
    }

    /// A tree that is nowhere, for tests.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
        Self { root: PathBuf::from("/nonexistent"), files }
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        let say = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(folder).with_context(say)? {
            let entry = entry.with_context(say)?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().with_context(say)?;
            if kind.is_dir() && name != ".git" && name != "target" {
                self.folder(&path)?;
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                let path = path.strip_prefix(&self.root).unwrap_or(&path);
                self.files.push((path.to_string_lossy().into_owned(), text));
            }
        }
        Ok(())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The Rust sources.
    pub(super) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| Path::new(path).extension().is_some_and(|end| end == "rs"))
    }

    /// The text of the file at `path`.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files().find(|(other, _)| *other == path).map(|(_, text)| text)
    }

    /// Whether there is a file or folder at `path`, from the top.
    pub(super) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let within =
            |file: &str| file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.files().any(|(file, _)| within(file)) || self.root.join(path).exists()
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

/// Whether the file holds tests only.
pub(super) fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests") && path.contains("/tests/")
}
