//! What of a fixed file goes into the module, and what the module refers to in the kernel.
//!
//! The named functions go in, what they call that the kernel does not have, gcc's own variants of functions, and
//! literals. Everything else is the kernel's: a second copy of a lock or a list would be another lock, another list.

use std::collections::{BTreeMap, BTreeSet};

use crate::MakeError;
use crate::compare::{Changes, Pair, Pairs};
use crate::listing::{Kind, Listing, Piece};
use crate::naming::{base, is_clone, is_copied};
use crate::statement::{Name, Use, names};
use crate::symvers::Symvers;

/// What a function of the kernel's is called in the module. A second symbol of the same name would make a kernel refuse
/// probes on either (`number_of_same_symbols`, `kernel/trace/trace_kprobe.c`, 6.6).
const PREFIX: &str = "lucos_";
/// What the kernel's own is called in the module, where that name would lead the loader to something else.
const KERNELS: &str = "lucos_kernel_";

/// Where a kernel has functions that must not be probed.
const BLACKLIST: &str = "_kprobe_blacklist";

/// The symbol of what replaces the kernel's function `name`.
pub(crate) fn replacement(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Two compilations of a file, and what is in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files<'a> {
    pub(crate) original: &'a Listing,
    pub(crate) fixed: &'a Listing,
    pub(crate) pairs: &'a Pairs,
    pub(crate) changes: &'a Changes,
    pub(crate) exported: &'a Symvers,
    /// What the whole fix changes, as functions that can be named.
    pub(crate) changed: &'a [String],
    /// Whether it changes nothing, so that what is named is named for itself.
    pub(crate) unchanged: bool,
}

/// What goes into the module.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Functions that are replaced.
    replaced: BTreeSet<String>,
    /// Every piece that goes in.
    kept: BTreeSet<String>,
    /// Names in the fixed file, and the symbols that they are in the module.
    symbols: BTreeMap<String, String>,
    /// Symbols of the module, and the kernel's names where they differ.
    sources: BTreeMap<String, String>,
    /// Keys of static calls, which objtool looks for by name.
    keys: BTreeSet<String>,
    /// New functions that other files of the module refer to.
    shared: BTreeSet<String>,
    /// Symbols that it refers to outside of itself.
    referred: BTreeSet<String>,
}

impl Selection {
    /// Selects what replaces `functions`; those of `leave` may differ from the original and stay, and `shared` are new ones that
    /// other files of the module need.
    pub(crate) fn of(
        files: Files<'_>,
        functions: &[String],
        leave: &[String],
        shared: &BTreeSet<String>,
    ) -> Result<Self, MakeError> {
        let replaced = functions.iter().cloned().collect();
        let mut selection = Self { replaced, shared: shared.clone(), ..Self::default() };
        check_data(files.changes)?;
        for name in functions {
            files.check_named(name)?;
        }
        let mut waiting: Vec<&Piece> =
            functions.iter().chain(shared).filter_map(|name| files.fixed.piece(name)).collect();
        while let Some(piece) = waiting.pop() {
            if selection.kept.insert(piece.name.clone()) {
                selection.follow(files, piece, &mut waiting)?;
            }
        }
        selection.check_others(files, leave)?;
        selection.add_blacklist(files.fixed);
        Ok(selection)
    }

    /// The pieces, in the order of the file.
    pub(crate) fn pieces<'a>(&self, fixed: &'a Listing) -> impl Iterator<Item = &'a Piece> {
        fixed.pieces().filter(|piece| self.kept.contains(&piece.name))
    }

    /// The names of those that are there because others need them; literals have none.
    pub(crate) fn along(&self, fixed: &Listing) -> Vec<String> {
        let named = self.pieces(fixed).filter(|piece| piece.kind != Kind::Literal);
        let others = named.filter(|piece| !self.replaced.contains(&piece.name));
        others.map(|piece| piece.name.clone()).collect()
    }

    /// Keys of static calls that the module must name.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// New functions that other files of the module refer to.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &str> {
        self.shared.iter().map(String::as_str)
    }

    /// Symbols that it leaves to others.
    pub(crate) fn referred(&self) -> impl Iterator<Item = &str> {
        self.referred.iter().map(String::as_str)
    }

    /// The symbol that `name` in `piece` is in the module, if that is another one.
    pub(crate) fn symbol(&self, original: &Listing, piece: &Piece, name: &Name<'_>) -> Option<String> {
        let function = name.text.strip_suffix(".cold").unwrap_or(name.text);
        let is_old = original.piece(function).is_some_and(|piece| piece.kind == Kind::Function);
        if self.kept.contains(function) && is_old && !self.is_pointer(piece, name) {
            return Some(replacement(name.text));
        }
        self.symbols.get(name.text).cloned()
    }

    /// The kernel's name of a symbol of the module.
    pub(crate) fn source<'a>(&'a self, symbol: &'a str) -> &'a str {
        self.sources.get(symbol).map_or(symbol, String::as_str)
    }

    /// Whether a replaced function's address is meant to be kept. That is the kernel's own then: it leads here by the jump
    /// that is put there, is equal to pointers that were stored before, and is still good after the patch has gone.
    fn is_pointer(&self, piece: &Piece, name: &Name<'_>) -> bool {
        name.used == Use::Address && self.replaced.contains(name.text) && piece.section_name() != BLACKLIST
    }

    fn follow<'a>(
        &mut self,
        files: Files<'a>,
        piece: &'a Piece,
        waiting: &mut Vec<&'a Piece>,
    ) -> Result<(), MakeError> {
        let all = piece.lines.iter().flat_map(|line| names(line));
        for name in all.filter(|name| name.used != Use::Said) {
            let function = name.text.strip_suffix(".cold").unwrap_or(name.text);
            let target = files.fixed.piece(name.text).or_else(|| files.fixed.piece(function));
            match target {
                Some(target) if self.is_taken_along(files, target, piece)? => {
                    if self.is_pointer(piece, &name) {
                        self.refer(files, piece, name.text, name.text)?;
                    }
                    waiting.push(target);
                }
                Some(target) if target.kind == Kind::Object => {
                    let Pair::Is(original) = files.pairs.original(&target.name) else {
                        return Err(MakeError::Ambiguous {
                            name: target.name.clone(),
                            base: base(&target.name).to_owned(),
                            by: piece.name.clone(),
                        });
                    };
                    self.refer(files, piece, name.text, original)?;
                }
                Some(target) => self.refer(files, piece, name.text, &target.name)?,
                None if files.original.defines(name.text) => {
                    self.refer(files, piece, name.text, name.text)?;
                }
                None => match files.fixed.alias(name.text) {
                    Some(target) => {
                        self.symbols.insert(name.text.to_owned(), target.to_owned());
                        waiting.extend(files.fixed.piece(target));
                    }
                    None if files.fixed.defines(name.text) => {
                        let (name, by) = (name.text.to_owned(), piece.name.clone());
                        return Err(MakeError::NewAssembly { name, by });
                    }
                    None => self.refer(files, piece, name.text, name.text)?,
                },
            }
        }
        Ok(())
    }

    /// Whether the module has the piece itself.
    fn is_taken_along(&self, files: Files<'_>, target: &Piece, by: &Piece) -> Result<bool, MakeError> {
        let along = match target.kind {
            Kind::Literal => true,
            Kind::Function => {
                self.replaced.contains(&target.name)
                    || is_clone(&target.name)
                    || files.original.piece(&target.name).is_none()
            }
            // A table of places within a function serves the function that it was made with.
            Kind::Object => {
                is_copied(target)
                    || files.pairs.original(&target.name) == Pair::New
                    || !target.is_writable() && has_places(files.fixed, target)
            }
        };
        if target.is_init() {
            let (name, section) = (target.name.clone(), target.section_name().to_owned());
            return Err(MakeError::Init { name, section, by: Some(by.name.clone()) });
        }
        Ok(along)
    }

    /// Notes that the module refers to the kernel's `original`, which the fixed file calls `name`.
    fn refer(&mut self, files: Files<'_>, by: &Piece, name: &str, original: &str) -> Result<(), MakeError> {
        if name.starts_with(".L") {
            return Ok(());
        }
        let piece = files.original.piece(original);
        if let Some(piece) = piece.filter(|piece| piece.is_init()) {
            let (name, section) = (name.to_owned(), piece.section_name().to_owned());
            return Err(MakeError::Init { name, section, by: Some(by.name.clone()) });
        }
        // The module has one of these of its own; and what a file keeps to itself can be called as something exported is.
        let is_hidden = original == "__this_module"
            || piece.is_some_and(|piece| !piece.global) && files.exported.get(original).is_some();
        let symbol = if is_hidden { format!("{KERNELS}{original}") } else { original.to_owned() };
        if symbol != original {
            self.sources.insert(symbol.clone(), original.to_owned());
        }
        self.referred.insert(symbol.clone());
        if symbol != name {
            self.symbols.insert(name.to_owned(), symbol);
        }
        if let Some(call) = original.strip_prefix("__SCT__") {
            let key = format!("__SCK__{call}");
            // The kernel finds the key itself where it has exported the call without it.
            if files.exported.get(original).is_none() || files.exported.get(&key).is_some() {
                self.referred.insert(key.clone());
                self.keys.insert(key);
            }
        }
        Ok(())
    }

    /// Every function whose code differs must have been thought of.
    fn check_others(&self, files: Files<'_>, leave: &[String]) -> Result<(), MakeError> {
        let is_settled = |name: &String| self.replaced.contains(name) || leave.contains(name);
        let is_with_callers = |variant: &String| {
            let mut callers = callers(files.fixed, variant).filter(|caller| caller != variant);
            is_clone(variant) && callers.all(|caller| self.kept.contains(caller))
        };
        let others =
            files.changes.functions.iter().filter(|name| !is_settled(name) && !is_with_callers(name));
        let functions: Vec<String> = others.cloned().collect();
        if functions.is_empty() { Ok(()) } else { Err(MakeError::AlsoChanged { functions }) }
    }

    /// New code must not be probed where the old must not.
    fn add_blacklist(&mut self, fixed: &Listing) {
        let entries = fixed.pieces().filter(|piece| piece.section_name() == BLACKLIST);
        let of_kept = entries
            .filter(|piece| self.kept.iter().any(|name| piece.lines.iter().any(|line| mentions(line, name))));
        let of_kept: Vec<String> = of_kept.map(|piece| piece.name.clone()).collect();
        self.kept.extend(of_kept);
    }
}

impl Files<'_> {
    fn check_named(&self, name: &str) -> Result<(), MakeError> {
        let (owned, changed) = (name.to_owned(), || self.changed.to_vec());
        if let Some(target) = self.fixed.alias(name) {
            return Err(MakeError::Alias { name: owned, target: target.to_owned() });
        }
        if is_clone(name) {
            return Err(MakeError::Variant { name: owned });
        }
        let of =
            |listing: &Listing| listing.piece(name).filter(|piece| piece.kind == Kind::Function).cloned();
        let Some(fixed) = of(self.fixed) else {
            return Err(MakeError::Inlined { name: owned, changed: changed() });
        };
        if of(self.original).is_none() {
            return Err(MakeError::New { name: owned });
        }
        let section = fixed.section_name().to_owned();
        if fixed.is_init() {
            return Err(MakeError::Init { name: owned, section, by: None });
        }
        if section.starts_with(".entry") {
            return Err(MakeError::Entry { name: owned, section });
        }
        let is_changed = |name: &str| self.changes.functions.iter().any(|other| other == name);
        let variants = self.fixed.pieces().filter(|piece| is_clone(&piece.name));
        let mut variants =
            variants.filter(|piece| is_changed(&piece.name) || self.original.piece(&piece.name).is_none());
        let calls_changed =
            variants.any(|variant| fixed.lines.iter().any(|line| mentions(line, &variant.name)));
        if self.unchanged || is_changed(name) || calls_changed {
            return Ok(());
        }
        Err(MakeError::Unchanged { name: owned, changed: changed() })
    }
}

/// Refuses what a patch of code does not reach.
pub(crate) fn check_data(changes: &Changes) -> Result<(), MakeError> {
    if !changes.data.is_empty() {
        return Err(MakeError::DataChanged { objects: changes.data.clone() });
    }
    if !changes.new_data.is_empty() {
        return Err(MakeError::NewData { objects: changes.new_data.clone() });
    }
    Ok(())
}

/// Functions that can be named for what has changed: in the place of gcc's variants those that call them.
pub(crate) fn nameable(fixed: &Listing, changes: &Changes) -> BTreeSet<String> {
    let mut waiting: Vec<&str> = changes.functions.iter().map(String::as_str).collect();
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    while let Some(name) = waiting.pop() {
        if !is_clone(name) {
            found.insert(name.to_owned());
        } else if seen.insert(name) {
            waiting.extend(callers(fixed, name));
        }
    }
    found.retain(|name| !changes.new_functions.contains(name));
    found
}

/// The functions of a file that refer to `name`.
fn callers<'a>(listing: &'a Listing, name: &str) -> impl Iterator<Item = &'a str> {
    let functions = listing.pieces().filter(|piece| piece.kind == Kind::Function);
    let calls = move |piece: &&Piece| piece.lines.iter().any(|line| mentions(line, name));
    functions.filter(calls).map(|piece| piece.name.as_str())
}

fn mentions(line: &str, symbol: &str) -> bool {
    names(line).iter().any(|name| name.text == symbol && name.used != Use::Said)
}

/// Whether an object holds addresses within functions.
fn has_places(listing: &Listing, piece: &Piece) -> bool {
    let all = piece.lines.iter().flat_map(|line| names(line));
    all.filter(|name| name.used != Use::Said)
        .any(|name| name.text.starts_with(".L") && listing.piece(name.text).is_none())
}
