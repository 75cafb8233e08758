//! Small C files through the machine's gcc, as kernel files go, but for kbuild.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

use crate::MakeError;
use crate::compare::{Changes, Pairs, compare};
use crate::emit;
use crate::listing::Listing;
use crate::select::{Files, Selection, nameable};
use crate::symvers::Symvers;

const FLAGS: [&str; 9] = [
    "-O2",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-common",
    "-fno-PIE",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-fno-stack-protector",
    "-mcmodel=kernel",
];

/// An original and its fix, compiled.
#[derive(Debug)]
pub(crate) struct Fix {
    /// What gcc has written for the fix.
    pub(crate) assembly: String,
    pub(crate) original: Listing,
    pub(crate) fixed: Listing,
    pub(crate) pairs: Pairs,
    pub(crate) changes: Changes,
    pub(crate) exported: Symvers,
    /// Whether there is none.
    pub(crate) unchanged: bool,
}

impl Fix {
    pub(crate) fn new(original: &str, fixed: &str) -> Self {
        Self::with(original, fixed, &[])
    }

    /// With more options for gcc.
    pub(crate) fn with(original: &str, fixed: &str, flags: &[&str]) -> Self {
        let compile = |text: &str| gcc(text, "c", "-S", flags);
        let assembly = compile(fixed);
        let (original, fixed) =
            (Listing::parse(&compile(original)).unwrap(), Listing::parse(&assembly).unwrap());
        let pairs = Pairs::of(&original, &fixed);
        let changes = compare(&original, &fixed, &pairs);
        Self { assembly, original, fixed, pairs, changes, exported: Symvers::default(), unchanged: false }
    }

    /// A text that nothing is changed in.
    pub(crate) fn none(text: &str) -> Self {
        Self { unchanged: true, ..Self::new(text, text) }
    }

    pub(crate) fn select(&self, functions: &[&str], leave: &[&str]) -> Result<Selection, MakeError> {
        let changed: Vec<String> = nameable(&self.fixed, &self.changes).into_iter().collect();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let Self { original, fixed, pairs, changes, exported, .. } = self;
        let files =
            Files { original, fixed, pairs, changes, exported, changed: &changed, unchanged: self.unchanged };
        Selection::of(files, &owned(functions), &owned(leave), &BTreeSet::new())
    }

    /// The object with what replaces `functions`.
    pub(crate) fn object(&self, functions: &[&str], leave: &[&str]) -> File {
        let selection = self.select(functions, leave).unwrap();
        File::new(&emit::assembly(&self.original, &self.fixed, &selection))
    }

    /// Why they are not replaced.
    pub(crate) fn refusal(&self, functions: &[&str]) -> String {
        self.select(functions, &[]).unwrap_err().to_string()
    }
}

/// An assembled object.
#[derive(Debug)]
pub(crate) struct File {
    bytes: Vec<u8>,
    pub(crate) assembly: String,
}

impl File {
    pub(crate) fn new(assembly: &str) -> Self {
        Self { bytes: gcc_bytes(assembly, "s", "-c", &[]), assembly: assembly.to_owned() }
    }

    /// Of a C file.
    pub(crate) fn of_c(text: &str) -> Self {
        Self { bytes: gcc_bytes(text, "c", "-c", &[]), assembly: String::new() }
    }

    fn read(&self) -> object::File<'_> {
        object::File::parse(&*self.bytes).unwrap()
    }

    pub(crate) fn defined(&self) -> Vec<String> {
        let file = self.read();
        let names = file.symbols().filter(object::ObjectSymbol::is_definition);
        names.map(|symbol| symbol.name().unwrap().to_owned()).collect()
    }

    pub(crate) fn undefined(&self) -> Vec<String> {
        let file = self.read();
        let names =
            file.symbols().filter(object::ObjectSymbol::is_undefined).map(|symbol| symbol.name().unwrap());
        names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// All bytes of the sections of that name.
    pub(crate) fn section(&self, name: &str) -> Vec<u8> {
        let file = self.read();
        let all = file.sections().filter(|section| section.name() == Ok(name));
        all.flat_map(|section| section.data().unwrap().to_vec()).collect()
    }

    /// Where the relocations of a section are, and to what: the name of a symbol or section.
    pub(crate) fn relocations(&self, name: &str) -> Vec<(u64, String)> {
        let file = self.read();
        let name_of = |target| {
            let RelocationTarget::Symbol(index) = target else { return "?".to_owned() };
            let symbol = file.symbol_by_index(index).unwrap();
            match symbol.section_index() {
                Some(section) if symbol.name().unwrap().is_empty() => {
                    file.section_by_index(section).unwrap().name().unwrap().to_owned()
                }
                _ => symbol.name().unwrap().to_owned(),
            }
        };
        let all = file.sections().filter(|section| section.name() == Ok(name));
        all.flat_map(|section| section.relocations().collect::<Vec<_>>())
            .map(|(at, relocation)| (at, name_of(relocation.target())))
            .collect()
    }
}

fn gcc(text: &str, kind: &str, what: &str, flags: &[&str]) -> String {
    String::from_utf8(gcc_bytes(text, kind, what, flags)).unwrap()
}

fn gcc_bytes(text: &str, kind: &str, what: &str, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join(format!("unit.{kind}")), folder.path().join("unit.out"));
    fs::write(&input, text).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(FLAGS).args(flags).arg(what).arg("-o").arg(&output).arg(&input);
    let said = gcc.output().unwrap();
    assert!(said.status.success(), "{}\n{text}", String::from_utf8_lossy(&said.stderr));
    fs::read(output).unwrap()
}
