//! What is asked for, held to all that can be said of it by itself.

use std::path::Path;

use lucos_lup::limits::{FUNCTIONS, MODULE_NAME_CHARS};

use crate::MakeError;
use crate::change::{Change, is_below};

/// Files that are compiled for one patch.
const UNITS: usize = 64;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The module's name.
    pub module: String,
    /// The files to compile, paths from the top of the source: changed ones, or such that include changed ones. Without any: the
    /// .c files of `changes`.
    pub units: Vec<String>,
    /// What is changed. With nothing, `units` and `functions` say what is compiled as it is.
    pub changes: Vec<Change>,
    /// The functions to replace. Without any: all that the fix changes, by what gcc makes of it.
    pub functions: Vec<String>,
    /// Functions whose code comes out different, too, and whose old code is as good.
    pub leave: Vec<String>,
    /// Whether the module is to have room for redirected returns (`lucos_lup::module::stubs`).
    pub stubs: bool,
}

impl Request {
    /// Checks it. Returns the files to compile.
    pub(crate) fn check(&self) -> Result<Vec<&str>, MakeError> {
        limit("functions", self.functions.len(), FUNCTIONS)?;
        let wrong = |name: &str, what| MakeError::Name { name: name.to_owned(), what };
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let module = &self.module;
        if module.is_empty() || module.len() > MODULE_NAME_CHARS || !module.chars().all(is_word) {
            return Err(wrong(module, "a module (small letters, digits, underscores; at most 55)"));
        }
        let changed = self.changes.iter().map(|change| change.path.as_str());
        let mut units: Vec<&str> = self.units.iter().map(String::as_str).collect();
        if units.is_empty() {
            units = changed.clone().filter(|path| ending(path) == Some("c")).collect();
        }
        units.sort_unstable();
        units.dedup();
        limit("files to compile", units.len(), UNITS)?;
        for path in units.iter().copied().chain(changed) {
            if !is_below(path) {
                return Err(wrong(path, "a file below the top of the kernel's source"));
            }
            if matches!(ending(path), Some("S" | "s")) {
                return Err(MakeError::Assembly { unit: path.to_owned() });
            }
        }
        match units.iter().find(|unit| ending(unit) != Some("c")) {
            Some(unit) => Err(wrong(unit, "a file to compile")),
            None if units.is_empty() => Err(MakeError::NoUnit),
            None => Ok(units),
        }
    }
}

/// What stands behind the last dot of a file's name.
fn ending(path: &str) -> Option<&str> {
    Path::new(path).extension().and_then(|ending| ending.to_str())
}

/// Refuses more than there is ever need for.
pub(crate) fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), MakeError> {
    if count <= limit { Ok(()) } else { Err(MakeError::TooMany { what, count, limit }) }
}
