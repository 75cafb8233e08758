//! What is known of each fix: `patches/catalogue`, one file each.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cache::workspace_root;

/// One fix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fix {
    /// The name of the live patch, and of its file here.
    pub name: String,
    /// One line for operators.
    pub summary: String,
    /// CVE ids.
    pub fixes: Vec<String>,
    /// What the program `holes` calls that which it closes.
    pub hole: String,
    /// Where it is in Debian's source.
    pub source: Location,
    /// What it changes in a kernel that was built.
    pub replaces: Replaces,
    /// How it is applied.
    pub policy: Policy,
    /// The file itself.
    #[serde(skip)]
    pub text: String,
}

/// Two versions of a source, and what is different.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The Debian package with the source.
    pub package: String,
    /// Its version with the hole.
    pub vulnerable: String,
    /// Its version without.
    pub fixed: String,
    /// What differs between the two; other files and functions may differ for other reasons.
    pub files: Vec<File>,
}

/// The part of a fix that is in one file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// From the top of the source.
    pub path: String,
    /// All functions that are changed or new.
    pub functions: Vec<String>,
}

/// What a kernel has of it: functions may be parts of others, and have none of their own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replaces {
    /// The kernel module they are in; none for the kernel itself.
    pub module: Option<String>,
    /// The functions that are replaced.
    pub functions: Vec<String>,
    /// Functions that come out of the compiler in another shape, and do what they did.
    #[serde(default)]
    pub leaves: Vec<String>,
}

/// How it is applied (`docs/patch-format.md`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// `coexist` or `quiescent`.
    pub consistency: String,
    /// Why old and new code may run at the same time.
    pub coexist_is_safe: Option<String>,
}

/// Reads all of them, in the order of their names.
pub fn catalogue() -> Result<Vec<Fix>> {
    let fixes = read::<Fix>("patches/catalogue", |fix| &fix.name)?;
    Ok(fixes.into_iter().map(|(fix, text)| Fix { text, ..fix }).collect())
}

/// Reads all descriptions of a folder of the workspace, each with its file's text, in the order of their names.
pub(super) fn read<T: DeserializeOwned>(below: &str, name: fn(&T) -> &str) -> Result<Vec<(T, String)>> {
    let folder = workspace_root().join(below);
    let say = || format!("cannot read {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(say)? {
        let path = entry.with_context(say)?.path();
        let read = || -> Result<(T, String)> {
            let text = fs::read_to_string(&path)?;
            let one: T = toml::from_str(&text)?;
            ensure!(
                path.file_stem().is_some_and(|stem| *stem == *name(&one)),
                "its name is not that of the file"
            );
            Ok((one, text))
        };
        found.push(read().with_context(|| format!("{} describes no patch", path.display()))?);
    }
    found.sort_by(|(a, _), (b, _)| name(a).cmp(name(b)));
    Ok(found)
}
