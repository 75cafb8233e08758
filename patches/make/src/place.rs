//! Which of several symbols with one name is meant.
//!
//! A kernel has dozens of static functions called `show` or `jhash`, and its table of symbols does not say from which
//! files they are. But what comes from one file lies together, so those of its names that occur once tell where. A name
//! that is not the file's own is that of the one symbol that other files can refer to.

use std::collections::{BTreeMap, BTreeSet};

use lucos_lup::manifest::Symbol;

use crate::MakeError;
use crate::listing::{Kind, Listing};

/// How the names of nops in front of functions begin, which objtool adds where there are such (`--prefix`, Linux 6.2).
const NOPS: &str = "__pfx_";

/// One symbol of the kernel or of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether other files can refer to it: its letter in kallsyms is a capital.
    pub global: bool,
}

/// Every symbol that a patch may refer to, by address: the kernel's, and those of its modules that are at hand, by their names.
#[derive(Debug, Clone, Default)]
pub struct Tables<'a> {
    /// The kernel's own.
    pub kernel: Vec<Entry<'a>>,
    /// Its modules', by name.
    pub modules: BTreeMap<String, Vec<Entry<'a>>>,
}

impl<'a> Tables<'a> {
    /// The symbols of one object.
    fn object(&self, name: Option<&str>) -> Option<&[Entry<'a>]> {
        match name {
            None => Some(&self.kernel),
            Some(name) => self.modules.get(name).map(Vec::as_slice),
        }
    }

    /// How many symbols of that name the kernel itself has.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.kernel.iter().filter(|symbol| symbol.name == name).count()
    }
}

/// What of the kernel a file is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The file's path from the top of the source.
    pub(crate) unit: &'a str,
    /// The module that it is a part of.
    pub(crate) object: Option<&'a str>,
    pub(crate) neighbours: &'a Neighbours,
}

impl Origin<'_> {
    /// Which symbol the file means by `name`: one of its own object, or, in a module, one of the kernel's.
    pub(crate) fn place(&self, tables: &Tables<'_>, name: &str) -> Result<Symbol, MakeError> {
        let unit = || self.unit.to_owned();
        let Some(own) = tables.object(self.object) else {
            return Err(MakeError::NoModule {
                module: self.object.unwrap_or_default().to_owned(),
                unit: unit(),
            });
        };
        let is_own = self.object.is_none() || own.iter().any(|symbol| symbol.name == name);
        let (table, object) = if is_own { (own, self.object) } else { (&tables.kernel[..], None) };
        let count = table.iter().filter(|symbol| symbol.name == name).count();
        if count == 0 {
            return Err(MakeError::NotInKernel { name: name.to_owned(), unit: unit() });
        }
        let undecided = || MakeError::Undecided { name: name.to_owned(), count, unit: unit() };
        let index = self.neighbours.position(table, name).ok_or_else(undecided)?;
        let position = if count == 1 { 0 } else { u32::try_from(index + 1).map_err(|_| undecided())? };
        Ok(Symbol { name: name.to_owned(), object: object.map(str::to_owned), position })
    }
}

/// A file's own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Neighbours {
    /// Those that are neighbours in the kernel, in their order there: by section.
    sections: BTreeMap<String, Vec<String>>,
    /// Those that no other file can refer to.
    local: BTreeSet<String>,
}

impl Neighbours {
    pub(crate) fn of(original: &Listing) -> Self {
        let mut found = Self::default();
        for piece in original.pieces().filter(|piece| piece.kind != Kind::Literal) {
            found.sections.entry(piece.section_base()).or_default().push(piece.name.clone());
            if !piece.global {
                found.local.insert(piece.name.clone());
            }
        }
        found
    }

    /// Returns which of the symbols called `name` in `table` the file means, counted from 0. The table is the kernel's, or
    /// that of the module that the file is a part of, by address. `None` if that cannot be told.
    fn position(&self, table: &[Entry<'_>], name: &str) -> Option<usize> {
        let places: Vec<usize> = (0..table.len()).filter(|index| table[*index].name == name).collect();
        let wanted: Vec<usize> = match places.len() {
            0 | 1 => places.clone(),
            _ if self.local.contains(name) => self.own(table, name, &places),
            _ => places.iter().copied().filter(|place| table[*place].global).collect(),
        };
        let [place] = wanted[..] else { return None };
        places.iter().position(|other| *other == place)
    }

    /// Of several places of a name those in a run of the file's names, with one in it that only the file has. Two files with the
    /// name can be neighbours themselves: then it is the one that stands beside what it stands beside in the file.
    fn own(&self, table: &[Entry<'_>], name: &str, places: &[usize]) -> Vec<usize> {
        let find = |names: &&Vec<String>| names.iter().any(|other| other == name);
        let Some(names) = self.sections.values().find(find) else { return Vec::new() };
        let near: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for other in table.iter().filter(|other| near.contains(other.name)) {
            *counts.entry(other.name).or_default() += 1;
        }
        let is_near = |index: &usize| near.contains(function(table[*index].name));
        let is_sure = |index: usize| counts.get(table[index].name) == Some(&1);
        let is_own = |place: usize| {
            let before = (0..place).rev().take_while(is_near).any(is_sure);
            before || (place + 1..table.len()).take_while(is_near).any(is_sure)
        };
        let own: Vec<usize> = places.iter().copied().filter(|place| is_own(*place)).collect();
        if own.len() < 2 {
            return own;
        }
        let most = own.iter().map(|place| beside(table, names, *place)).max().unwrap_or(0);
        own.into_iter().filter(|place| most != 0 && beside(table, names, *place) == most).collect()
    }
}

/// On how many sides of a place stands what stands there in the file, whose names are `names`.
fn beside(table: &[Entry<'_>], names: &[String], place: usize) -> usize {
    let name = table[place].name;
    let own = |at: Option<usize>| names.get(at?).map(String::as_str);
    let at = names.iter().position(|other| other == name);
    let wanted = [own(at.and_then(|at| at.checked_sub(1))), own(at.map(|at| at + 1))];
    let stands = |index: Option<usize>| Some(table.get(index?)?.name);
    // What stands in front of a function's nops stands in front of the function.
    let is_own_nops = |index: &usize| table[*index].name.strip_prefix(NOPS) == Some(name);
    let first = place.checked_sub(1).filter(is_own_nops).unwrap_or(place);
    let found = [stands(first.checked_sub(1)), stands(Some(place + 1)).map(function)];
    found.iter().zip(wanted).filter(|(found, wanted)| wanted.is_some() && **found == *wanted).count()
}

/// The function whose nops in front a symbol names.
fn function(name: &str) -> &str {
    name.strip_prefix(NOPS).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fix;

    /// A capital begins a name that other files can refer to, as in kallsyms.
    fn position(names: &[&str], name: &str) -> Option<usize> {
        let text = "extern void say(int); static int state = 3;\n\
                    __attribute__((noinline)) static void show(int i) { say(i); say(state++); }\n\
                    __attribute__((noinline)) static void rare(int i) { say(i); show(5); }\n\
                    void Known(int i) { show(i); rare(i); rare(2); }";
        let is_global = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase());
        let table: Vec<Entry<'_>> =
            names.iter().map(|name| Entry { name, global: is_global(name) }).collect();
        Neighbours::of(&Fix::new(text, text).original).position(&table, name)
    }

    #[test]
    fn a_file_is_found_by_the_names_that_only_it_has() {
        let table = ["show", "other", "show", "rare", "Known", "more", "show", "state"];
        assert_eq!(position(&table, "show"), Some(1));
        assert_eq!(position(&table, "rare"), Some(0));
        let padded =
            ["__pfx_show", "show", "__pfx_other", "other", "__pfx_show", "show", "__pfx_rare", "rare"];
        assert_eq!(position(&padded, "show"), Some(1));
        assert_eq!(position(&table, "none"), None);
    }

    #[test]
    fn of_two_files_side_by_side_each_has_its_own() {
        // The other file's begins where this one ends, or ends where this one begins.
        assert_eq!(position(&["show", "rare", "Known", "show", "Other"], "show"), Some(0));
        assert_eq!(position(&["Other", "show", "show", "rare", "Known"], "show"), Some(1));
        // Neither stands where it does in the file.
        assert_eq!(position(&["Known", "show", "Other", "rare", "show"], "show"), None);
        let padded =
            ["__pfx_Other", "Other", "__pfx_show", "show", "__pfx_show", "show", "__pfx_rare", "rare"];
        assert_eq!(position(&padded, "show"), Some(1));
    }

    #[test]
    fn doubt_is_no_position() {
        // Its names are there, but another file's lies between, or another has all of them, too.
        assert_eq!(position(&["show", "x", "show", "x", "Known"], "show"), None);
        assert_eq!(position(&["show", "rare", "x", "rare", "show"], "show"), None);
        // What stands on its own in another section is no neighbour.
        assert_eq!(position(&["show", "state", "show"], "show"), None);
    }

    #[test]
    fn a_place_is_in_the_files_module_or_in_the_kernel() {
        let entries =
            |names: &[&'static str]| names.iter().map(|name| Entry { name, global: true }).collect();
        let modules = BTreeMap::from([("m".to_owned(), entries(&["own", "both"]))]);
        let tables = Tables { kernel: entries(&["both", "kernels", "own", "x", "own"]), modules };
        let neighbours = Neighbours::default();
        let of = |object| Origin { unit: "a.c", object, neighbours: &neighbours };
        let place = |object: Option<&str>, name: &str, position| Symbol {
            name: name.into(),
            object: object.map(Into::into),
            position,
        };
        let m = Some("m");
        assert_eq!(of(m).place(&tables, "own").unwrap(), place(m, "own", 0));
        assert_eq!(of(m).place(&tables, "kernels").unwrap(), place(None, "kernels", 0));
        assert_eq!(of(None).place(&tables, "both").unwrap(), place(None, "both", 0));
        let said = |object, name| of(object).place(&tables, name).unwrap_err().to_string();
        assert!(said(None, "own").contains("which of the kernel's 2 symbols `own` a.c means"));
        assert!(said(m, "nothing").contains("`nothing`, which a.c refers to, is nowhere in the kernel"));
        assert!(said(Some("n"), "own").contains("a.c is a part of the module n"));
        assert_eq!((tables.count("own"), tables.count("nothing")), (2, 0));
    }

    #[test]
    fn the_second_of_two_has_the_position_two() {
        let kernel = [("say", false), ("say", true)].map(|(name, global)| Entry { name, global }).to_vec();
        let tables = Tables { kernel, ..Tables::default() };
        let origin = Origin { unit: "a.c", object: None, neighbours: &Neighbours::default() };
        assert_eq!(origin.place(&tables, "say").unwrap().position, 2);
    }

    #[test]
    fn what_is_another_files_is_what_that_lets_others_see() {
        let table =
            [("say", false), ("say", true), ("say", false)].map(|(name, global)| Entry { name, global });
        assert_eq!(Neighbours::default().position(&table, "say"), Some(1));
        assert_eq!(Neighbours::default().position(&table[..1], "say"), Some(0));
        let two = [("say", true), ("say", true)].map(|(name, global)| Entry { name, global });
        assert_eq!(Neighbours::default().position(&two, "say"), None);
    }
}
