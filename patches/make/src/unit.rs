//! One file that is compiled, as it was and as the fix has it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::change::Change;
use crate::compare::{Changes, Pairs, compare};
use crate::kbuild::Kernel;
use crate::lines::realigned;
use crate::listing::{Kind, Listing};
use crate::place::{Neighbours, Origin};
use crate::run::{link_missing, read, text, write};
use crate::select::{Files, Selection, check_data, nameable};
use crate::symvers::Symvers;
use crate::{MakeError, emit};

/// A file of the kernel's source in two versions, and what differs.
#[derive(Debug)]
pub(crate) struct Unit<'a> {
    /// Its path from the top of the source.
    pub(crate) path: &'a str,
    /// The module that it is a part of; `None` for the kernel itself.
    pub(crate) object: Option<String>,
    /// The changed files that compiling it has read.
    pub(crate) read: BTreeSet<&'a str>,
    /// Whether nothing is changed anywhere: then functions are replaced by what they are.
    unchanged: bool,
    original: Listing,
    fixed: Listing,
    pairs: Pairs,
    changes: Changes,
    neighbours: Neighbours,
}

impl<'a> Unit<'a> {
    /// Compiles both versions, with scratch files in `folder`.
    pub(crate) fn compile(
        kernel: &Kernel,
        path: &'a str,
        texts: &'a [Change],
        folder: &Path,
    ) -> Result<Self, MakeError> {
        let compilation = kernel.compilation(path)?;
        let compile = |folder: &Path, of: &dyn Fn(&Change) -> String| {
            let paths = put_files(kernel, path, texts, folder, of)?;
            let (assembly, read) = compilation.assembly(folder, &paths)?;
            Ok::<_, MakeError>((Listing::parse(&assembly)?, read))
        };
        let (original, _) = compile(&folder.join("original"), &|change| change.original.clone())?;
        let (fixed, read) =
            compile(&folder.join("fixed"), &|change| realigned(&change.original, &change.fixed))?;
        let pairs = Pairs::of(&original, &fixed);
        let changes = compare(&original, &fixed, &pairs);
        let neighbours = Neighbours::of(&original);
        let unchanged = texts.is_empty();
        let object = compilation.module;
        Ok(Self { path, object, read, unchanged, original, fixed, pairs, changes, neighbours })
    }

    /// What of the kernel it is.
    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { unit: self.path, object: self.object.as_deref(), neighbours: &self.neighbours }
    }

    /// Refuses what a patch of code does not reach.
    pub(crate) fn check_data(&self) -> Result<(), MakeError> {
        check_data(&self.changes)
    }

    /// The functions that the fix changes, as those that can be replaced.
    pub(crate) fn nameable(&self) -> BTreeSet<String> {
        nameable(&self.fixed, &self.changes)
    }

    /// Whether the fixed file has a function of that name.
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.fixed.piece(name).is_some_and(|piece| piece.kind == Kind::Function)
    }

    /// Whether the fix adds a function of that name here, which other files can refer to.
    pub(crate) fn adds(&self, name: &str) -> bool {
        let is_shared = |piece: &crate::listing::Piece| piece.kind == Kind::Function && piece.global;
        self.fixed.piece(name).is_some_and(is_shared) && !self.original.defines(name)
    }

    /// Whether either version has something of that name.
    pub(crate) fn defines(&self, name: &str) -> bool {
        self.original.defines(name) || self.fixed.defines(name)
    }

    /// Selects what replaces `functions`, with those of `shared` that other files refer to.
    pub(crate) fn select(
        &self,
        exported: &Symvers,
        changed: &[String],
        functions: &[String],
        leave: &[String],
        shared: &BTreeSet<String>,
    ) -> Result<Selection, MakeError> {
        let Self { original, fixed, pairs, changes, unchanged, .. } = self;
        let files = Files { original, fixed, pairs, changes, exported, changed, unchanged: *unchanged };
        Selection::of(files, functions, leave, shared)
    }

    /// What was selected, as text for the assembler.
    pub(crate) fn assembly(&self, selection: &Selection) -> String {
        emit::assembly(&self.original, &self.fixed, selection)
    }

    /// The names of what is selected because something else needs it.
    pub(crate) fn along(&self, selection: &Selection) -> Vec<String> {
        selection.along(&self.fixed)
    }
}

/// Puts the changed files, and the unit if it is none of them, below `folder`. Returns the paths of all.
///
/// A file is first looked for beside the one that includes it. So that a changed header is found by all that include it so,
/// their folders have links to everything else that is there in the source.
fn put_files<'a>(
    kernel: &Kernel,
    unit: &'a str,
    changes: &'a [Change],
    folder: &Path,
    of: &dyn Fn(&Change) -> String,
) -> Result<Vec<&'a str>, MakeError> {
    for change in changes {
        write(&folder.join(&change.path), &of(change))?;
    }
    let mut paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    if !paths.contains(&unit) {
        write(&folder.join(unit), &text(&read(&kernel.source.join(unit))?))?;
        paths.push(unit);
    }
    let folders: BTreeSet<&Path> = paths.iter().filter_map(|path| Path::new(path).parent()).collect();
    for below in folders {
        link_missing(&kernel.source.join(below), &folder.join(below))?;
    }
    Ok(paths)
}
