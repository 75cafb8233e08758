//! The same code, or not: two compilations of one file, piece by piece.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::listing::{Kind, Listing, Piece};
use crate::naming::{base, is_constant, is_copied, is_note};
use crate::statement::{Name, renamed};

/// What the fix has changed, by what gcc makes of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Functions of both whose code differs.
    pub(crate) functions: Vec<String>,
    /// Functions that the fixed file alone has.
    pub(crate) new_functions: Vec<String>,
    /// Objects of both that begin with something else.
    pub(crate) data: Vec<String>,
    /// Objects that the fixed file alone has, and that the kernel would write to.
    pub(crate) new_data: Vec<String>,
}

/// Which static object of the original is which of the fixed file, where gcc may have numbered them anew.
#[derive(Debug, Default)]
pub(crate) struct Pairs(BTreeMap<String, Option<String>>);

/// What an object of the fixed file is in the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair<'a> {
    /// Nothing: it has none of that name.
    New,
    /// One of several, and nobody can tell which.
    Unknown,
    /// The object of this name.
    Is(&'a str),
}

impl Pairs {
    /// Objects of one name are taken to be in the same order in both, which holds as long as there are as many.
    pub(crate) fn of(original: &Listing, fixed: &Listing) -> Self {
        let (old, new) = (by_base(original), by_base(fixed));
        let mut pairs = BTreeMap::new();
        for (name, pieces) in new {
            let others = old.get(name).map_or(&[][..], Vec::as_slice);
            let same = others.len() == pieces.len();
            let places = |(one, other): (&&Piece, &&Piece)| one.section_base() == other.section_base();
            // One of a name is that, wherever a change of what is in it has moved it.
            let same = same && (pieces.len() == 1 || others.iter().zip(&pieces).all(places));
            for (index, piece) in pieces.iter().enumerate() {
                let other = others.get(index).filter(|_| same).map(|other| other.name.clone());
                // None of this name in the original: it is new. Another number of them: nobody can tell which is which.
                if !others.is_empty() {
                    pairs.insert(piece.name.clone(), other);
                }
            }
        }
        Self(pairs)
    }

    /// What an object of the fixed file is in the original.
    pub(crate) fn original(&self, name: &str) -> Pair<'_> {
        match self.0.get(name) {
            None => Pair::New,
            Some(None) => Pair::Unknown,
            Some(Some(original)) => Pair::Is(original),
        }
    }
}

impl Piece {
    /// The section without the piece's own name in it.
    pub(crate) fn section_base(&self) -> String {
        let name = self.section_name();
        match name.strip_suffix(&self.name).and_then(|start| start.strip_suffix('.')) {
            Some(start) if !start.is_empty() => start.to_owned(),
            _ => name.to_owned(),
        }
    }
}

/// Objects by name without number, each list by number.
fn by_base(listing: &Listing) -> BTreeMap<&str, Vec<&Piece>> {
    let mut map: BTreeMap<&str, Vec<&Piece>> = BTreeMap::new();
    for piece in listing.pieces().filter(|piece| piece.kind == Kind::Object) {
        map.entry(base(&piece.name)).or_default().push(piece);
    }
    for list in map.values_mut() {
        list.sort_by_key(|piece| number(&piece.name));
    }
    map
}

fn number(name: &str) -> u64 {
    name.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Compares what is in both, and lists what is new.
pub(crate) fn compare(original: &Listing, fixed: &Listing, pairs: &Pairs) -> Changes {
    let mut changes = Changes::default();
    for piece in fixed.pieces() {
        match piece.kind {
            Kind::Literal => {}
            Kind::Function => match original.piece(&piece.name) {
                None => changes.new_functions.push(piece.name.clone()),
                Some(old) if normal(original, old) != normal(fixed, piece) => {
                    changes.functions.push(piece.name.clone());
                }
                Some(_) => {}
            },
            Kind::Object if is_copied(piece) || is_note(piece) => {}
            Kind::Object => match pairs.original(&piece.name) {
                Pair::New if piece.is_writable() => changes.new_data.push(piece.name.clone()),
                Pair::Is(old) => {
                    let old = original.piece(old);
                    let is_same = |old: &Piece| {
                        old.section_base() == piece.section_base()
                            && normal(original, old) == normal(fixed, piece)
                    };
                    if !old.is_some_and(is_same) {
                        changes.data.push(piece.name.clone());
                    }
                }
                Pair::New | Pair::Unknown => {}
            },
        }
    }
    changes
}

/// A piece's lines, without what may differ between two compilations of the same: numbers of labels and of static
/// objects. Literals are there by what is in them.
fn normal(listing: &Listing, piece: &Piece) -> String {
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    let mut text = String::new();
    for line in &piece.lines {
        let line = renamed(line, |name| {
            let other = listing.piece(name.text);
            if let Some(constant) = other.filter(|other| is_constant(other)) {
                return Some(format!("<{}>", contents(listing, constant)));
            }
            if other.is_some_and(|other| other.kind == Kind::Object) {
                return Some(format!("{}.*", base(name.text)));
            }
            let next = labels.len();
            let is_label = other.is_none() && name.text.starts_with(".L");
            is_label.then(|| format!(".L{}", labels.entry(name.text.to_owned()).or_insert(next)))
        });
        let _ = writeln!(text, "{}", line.trim());
    }
    text
}

/// What is in a constant; a literal that a table of gcc's points to is there by what is in that.
fn contents(listing: &Listing, constant: &Piece) -> String {
    let data = |piece: &Piece| {
        let lines = piece.lines.iter().map(|line| line.trim().to_owned());
        lines.skip_while(|line| !line.ends_with(':')).skip(1).collect::<Vec<_>>().join(" ")
    };
    let of_literal =
        |name: &Name<'_>| listing.piece(name.text).filter(|other| other.kind == Kind::Literal).map(data);
    renamed(&data(constant), of_literal)
}
