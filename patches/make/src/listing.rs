//! What gcc writes with `-S`, taken apart: one piece for each function and each object.
//!
//! Assembly is where a file can be divided without loss. All that inline assembly adds to other sections for a function
//! (`__bug_table`, `__jump_table`, `.altinstructions` with their replacements, ...) stands among that function's lines,
//! and goes with them or is left out with them. In an object file the same entries are mixed with everybody's.

use std::collections::{BTreeMap, BTreeSet};

use crate::MakeError;
use crate::statement::{Use, names};

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A function, with its part for unlikely cases.
    Function,
    /// An object that has a name.
    Object,
    /// A literal that only the assembler has a name for: `.LC7`.
    Literal,
}

/// A function or an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// What `.section` says: name, flags, type.
    pub(crate) section: String,
    /// Whether other files can refer to it.
    pub(crate) global: bool,
    /// Its lines, from alignment to size, without those that only say what file they come from.
    pub(crate) lines: Vec<String>,
}

impl Piece {
    /// The section's name alone.
    pub(crate) fn section_name(&self) -> &str {
        section_name(&self.section)
    }

    /// Whether the kernel writes to it.
    pub(crate) fn is_writable(&self) -> bool {
        let flags = self.section.split(',').nth(1).unwrap_or_default();
        flags.contains('w') || matches!(self.section_name(), ".data" | ".bss")
    }

    /// Whether it is thrown away once the kernel or the module has started, or is never there.
    pub(crate) fn is_init(&self) -> bool {
        [".init", ".exit", ".head.text", ".ref"].iter().any(|start| self.section_name().starts_with(start))
    }
}

/// One file.
#[derive(Debug, Default, Clone)]
pub(crate) struct Listing {
    pieces: Vec<Piece>,
    by_name: BTreeMap<String, usize>,
    /// One name for another.
    aliases: BTreeMap<String, String>,
    /// What assembly outside of functions defines.
    assembled: BTreeSet<String>,
    /// Such assembly that defines nothing: macros.
    pub(crate) preamble: Vec<String>,
}

impl Listing {
    /// Takes gcc's output apart. A line that is not understood is an error: nothing is lost without a word.
    pub(crate) fn parse(text: &str) -> Result<Self, MakeError> {
        let mut reader = Reader::default();
        for (line, number) in text.lines().zip(1..) {
            reader.line(line).map_err(|why| MakeError::Listing {
                number,
                line: line.trim().to_owned(),
                why,
            })?;
        }
        reader.close();
        let mut listing = reader.listing;
        let named = listing.pieces.iter().enumerate();
        listing.by_name = named.map(|(index, piece)| (piece.name.clone(), index)).collect();
        Ok(listing)
    }

    /// All pieces, in the order of the file.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    /// The piece of that name. A function's part for unlikely cases belongs to the function.
    pub(crate) fn piece(&self, name: &str) -> Option<&Piece> {
        self.by_name.get(name).and_then(|index| self.pieces.get(*index))
    }

    /// What the alias `name` is another name of.
    pub(crate) fn alias(&self, name: &str) -> Option<&str> {
        self.aliases.get(name).map(String::as_str)
    }

    /// Whether anything in the file has that name.
    pub(crate) fn defines(&self, name: &str) -> bool {
        self.piece(name).is_some() || self.alias(name).is_some() || self.assembled.contains(name)
    }
}

/// The state between two lines.
#[derive(Debug, Default)]
struct Reader {
    listing: Listing,
    /// What is being assembled to.
    section: String,
    /// The full description of each section: gcc gives it once.
    sections: BTreeMap<String, String>,
    /// Lines for the next piece: alignment, type, size, and the nops in front of a function.
    waiting: Vec<String>,
    kinds: BTreeMap<String, Kind>,
    globals: BTreeSet<String>,
    locals: BTreeSet<String>,
    piece: Option<Piece>,
    /// Assembly of the programmer's outside of functions.
    outside: Option<Vec<String>>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let text = line.trim();
        if text == "#APP" || text == "#NO_APP" {
            if self.is_in_function() {
                return Ok(());
            }
            self.close();
            match self.outside.take() {
                Some(lines) => self.assembly(lines),
                None if text == "#APP" => self.outside = Some(Vec::new()),
                None => {}
            }
            return Ok(());
        }
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        if let Some(lines) = &mut self.outside {
            lines.push(line.to_owned());
            return Ok(());
        }
        if self.is_in_function() {
            self.function_line(line, text);
            return Ok(());
        }
        match text.strip_suffix(':') {
            Some(label) if !label.contains(char::is_whitespace) => self.label(line, label),
            _ => self.directive(line, text),
        }
    }

    fn is_in_function(&self) -> bool {
        self.piece.as_ref().is_some_and(|piece| piece.kind == Kind::Function)
    }

    /// Ends the piece.
    fn close(&mut self) {
        self.listing.pieces.extend(self.piece.take());
    }

    fn function_line(&mut self, line: &str, text: &str) {
        let whole = self.whole_section(text);
        let Some(piece) = &mut self.piece else { return };
        piece.lines.push(whole.unwrap_or_else(|| line.to_owned()));
        if size_of_code(text) == Some(piece.name.as_str()) {
            self.close();
        }
    }

    /// A `.section` with its full description, if the line is one.
    fn whole_section(&mut self, text: &str) -> Option<String> {
        // A programmer's line with more than that in it has its flags, as it cannot know who was there before.
        let described = text.strip_prefix(".section").filter(|_| !text.contains(';'))?.trim().to_owned();
        Some(format!("\t.section\t{}", self.described(described)))
    }

    /// Learns a section's description, or completes it.
    fn described(&mut self, section: String) -> String {
        if section.contains(',') {
            self.sections.insert(section_name(&section).to_owned(), section.clone());
            return section;
        }
        self.sections.get(&section).cloned().unwrap_or(section)
    }

    fn label(&mut self, line: &str, label: &str) -> Result<(), String> {
        let section = section_name(&self.section);
        if label.starts_with(".LCOLD") || label.starts_with(".LHOT") {
            return Ok(());
        }
        if label.starts_with(".LPFE") {
            self.waiting.push(line.to_owned());
            return Ok(());
        }
        if section.starts_with(".note") {
            return Ok(());
        }
        self.close();
        let kind = match self.kinds.get(label) {
            Some(kind) => *kind,
            None if label.starts_with(".L") => Kind::Literal,
            None => return Err("a label without a type".to_owned()),
        };
        let mut lines = std::mem::take(&mut self.waiting);
        lines.push(line.to_owned());
        self.start(label, kind, lines);
        Ok(())
    }

    fn start(&mut self, name: &str, kind: Kind, lines: Vec<String>) {
        let (name, global) = (name.to_owned(), self.globals.contains(name));
        self.piece = Some(Piece { name, kind, section: self.section.clone(), global, lines });
    }

    fn directive(&mut self, line: &str, text: &str) -> Result<(), String> {
        let (what, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let skipped = [".note", "__patchable_function_entries"];
        if what == ".section" || matches!(what, ".text" | ".data" | ".bss") {
            self.close();
            let section = if what == ".section" { rest } else { what };
            self.section = self.described(section.to_owned());
            return Ok(());
        }
        // Nothing on x86 reads the list of functions with nops in front of them: ftrace has one of its own.
        if skipped.iter().any(|start| section_name(&self.section).starts_with(start)) {
            return Ok(());
        }
        match what {
            ".file" | ".ident" | ".hidden" => {}
            ".p2align" | ".align" | ".balign" => {
                self.close();
                self.waiting.push(line.to_owned());
            }
            ".globl" | ".weak" => {
                self.close();
                self.globals.insert(rest.to_owned());
            }
            ".local" => {
                self.close();
                self.locals.insert(rest.to_owned());
            }
            ".type" => {
                self.close();
                self.kind(rest)?;
                self.waiting.push(line.to_owned());
            }
            ".size" => self.size(line, text),
            ".set" => {
                self.close();
                let (name, other) = rest.split_once(',').ok_or("an alias of nothing")?;
                self.listing.aliases.insert(name.trim().to_owned(), other.trim().to_owned());
            }
            ".comm" => {
                self.close();
                let name = rest.split(',').next().unwrap_or_default().trim().to_owned();
                let mut lines = std::mem::take(&mut self.waiting);
                if self.locals.contains(&name) {
                    lines.push(format!("\t.local\t{name}"));
                }
                lines.push(line.to_owned());
                let (kind, section) = (Kind::Object, ".bss".to_owned());
                let global = !self.locals.contains(&name);
                self.listing.pieces.push(Piece { name, kind, section, global, lines });
            }
            "nop" => self.waiting.push(line.to_owned()),
            _ => match &mut self.piece {
                Some(piece) => piece.lines.push(line.to_owned()),
                None => return Err("it belongs to nothing that has a name".to_owned()),
            },
        }
        Ok(())
    }

    fn kind(&mut self, rest: &str) -> Result<(), String> {
        let (name, kind) = rest.split_once(',').ok_or("a type of nothing")?;
        let kind = match kind.trim() {
            "@function" => Kind::Function,
            "@object" => Kind::Object,
            other => return Err(format!("a type that kernels do not have: {other}")),
        };
        self.kinds.insert(name.trim().to_owned(), kind);
        Ok(())
    }

    /// The size of an object stands in front of it; that of a function's unlikely part behind the function.
    fn size(&mut self, line: &str, text: &str) {
        let of = size_of_code(text).and_then(|name| name.strip_suffix(".cold"));
        if let (Some(of), Some(piece)) = (of, self.listing.pieces.last_mut())
            && piece.name == of
        {
            piece.lines.push(format!("\t.section\t{}", self.section));
            piece.lines.push(line.to_owned());
            return;
        }
        self.close();
        self.waiting.push(line.to_owned());
    }

    /// Assembly outside of functions. What it defines is the kernel's already, or is none of a function's business.
    fn assembly(&mut self, lines: Vec<String>) {
        let defined: Vec<String> = lines
            .iter()
            .flat_map(|line| names(line))
            .filter(|name| name.used == Use::Said)
            .map(|name| name.text.to_owned())
            .collect();
        let is_macro = lines.iter().any(|line| line.trim_start().starts_with(".macro"));
        if is_macro && defined.is_empty() {
            self.listing.preamble.extend(lines);
        }
        self.listing.assembled.extend(defined);
    }
}

/// `.size NAME, .-NAME`
fn size_of_code(text: &str) -> Option<&str> {
    let (name, size) = text.strip_prefix(".size")?.trim().split_once(',')?;
    size.trim().strip_prefix(".-").filter(|other| *other == name.trim()).map(|_| name.trim())
}

pub(crate) fn section_name(section: &str) -> &str {
    section.split(',').next().unwrap_or_default().trim().trim_matches('"')
}
