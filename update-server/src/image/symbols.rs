//! Symbols by address and by name.

use std::fmt;

use crate::addr::Gva;

/// One symbol, at the address that the kernel was linked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name, which others may have, too.
    pub name: &'a str,
    /// Its kind, as nm(1) writes it: `T` and `t` are functions, `A` is absolute.
    pub kind: char,
    /// Where it is: at this address plus KASLR's offset, unless it is absolute.
    pub address: Gva,
    /// Whether it stays where it is under KASLR: per-CPU data, which counts from each processor's area, and constants.
    pub absolute: bool,
}

impl Symbol<'_> {
    /// Whether it is code.
    pub fn is_function(&self) -> bool {
        matches!(self.kind, 't' | 'T' | 'w' | 'W')
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: Gva,
    name: u32,
    len: u16,
    kind: u8,
    absolute: bool,
}

/// All symbols of one kernel or module.
#[derive(Clone, Default)]
pub struct Symbols {
    names: String,
    /// By address; those with the same one in the order of the kernel's table.
    entries: Vec<Entry>,
    /// Indices of entries, by name.
    by_name: Vec<u32>,
    /// Indices of those entries that are functions, by address.
    functions: Vec<u32>,
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbols").field("count", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Symbols {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.entries.iter().map(|entry| self.symbol(entry))
    }

    /// Every symbol of this name, by address.
    pub fn named(&self, name: &str) -> impl Iterator<Item = Symbol<'_>> {
        let from = self.by_name.partition_point(|&index| self.name_of(index) < name);
        let rest = self.by_name[from..].iter();
        rest.take_while(move |&&index| self.name_of(index) == name)
            .map(|&index| self.symbol(&self.entries[index as usize]))
    }

    /// The one symbol of this name; `None` if there is none, or more than one.
    pub fn only(&self, name: &str) -> Option<Symbol<'_>> {
        let mut found = self.named(name);
        let first = found.next();
        if found.next().is_some() { None } else { first }
    }

    /// The symbol that `at` is in, and how far: the last one that begins at `at` or before it. Of several at one address
    /// it is the first in the kernel's table, as in the kernel's own traces.
    pub fn containing(&self, at: Gva) -> Option<(Symbol<'_>, u64)> {
        let behind = self.entries.partition_point(|entry| entry.address <= at);
        let last = self.entries.get(behind.checked_sub(1)?)?;
        let first = self.entries.partition_point(|entry| entry.address < last.address);
        let symbol = self.symbol(&self.entries[first]);
        Some((symbol, at.0 - symbol.address.0))
    }

    /// The function that `at` is in, and where the next one begins, if there is one: labels in hand-written code are symbols,
    /// too, and no place where a function begins.
    pub fn function(&self, at: Gva) -> Option<(Symbol<'_>, Option<Gva>)> {
        let entry = |index: u32| &self.entries[index as usize];
        let behind = self.functions.partition_point(|&index| entry(index).address <= at);
        let own = entry(self.functions[behind.checked_sub(1)?]);
        let next = self.functions.get(behind).map(|&index| entry(index).address);
        Some((self.symbol(own), next))
    }

    /// Where the next symbol behind `at` begins.
    pub fn next_behind(&self, at: Gva) -> Option<Gva> {
        let behind = self.entries.partition_point(|entry| entry.address <= at);
        self.entries.get(behind).map(|entry| entry.address)
    }

    fn symbol(&self, entry: &Entry) -> Symbol<'_> {
        let Entry { address, kind, absolute, .. } = *entry;
        Symbol { name: self.text(entry), kind: char::from(kind), address, absolute }
    }

    fn name_of(&self, index: u32) -> &str {
        self.text(&self.entries[index as usize])
    }

    fn text(&self, entry: &Entry) -> &str {
        let from = entry.name as usize;
        &self.names[from..from + usize::from(entry.len)]
    }
}

/// Collects symbols.
#[derive(Debug, Default)]
pub(crate) struct SymbolsBuilder {
    symbols: Symbols,
}

impl SymbolsBuilder {
    pub(crate) fn new(count: usize) -> Self {
        let entries = Vec::with_capacity(count);
        Self { symbols: Symbols { entries, ..Symbols::default() } }
    }

    /// Adds one; what does not fit in is left out, and no kernel has it: a name of 64 KiB, or 4 GiB of names.
    pub(crate) fn add(&mut self, address: Gva, absolute: bool, kind: char, name: &str) {
        let Symbols { names, entries, .. } = &mut self.symbols;
        let (Ok(from), Ok(len), Ok(kind)) =
            (u32::try_from(names.len()), u16::try_from(name.len()), u8::try_from(kind))
        else {
            return;
        };
        names.push_str(name);
        entries.push(Entry { address, name: from, len, kind, absolute });
    }

    pub(crate) fn finish(self) -> Symbols {
        let mut symbols = self.symbols;
        symbols.entries.sort_by_key(|entry| entry.address);
        let mut by_name: Vec<u32> = (0..).take(symbols.entries.len()).collect();
        by_name.sort_by(|&left, &right| {
            symbols.name_of(left).cmp(symbols.name_of(right)).then(left.cmp(&right))
        });
        symbols.by_name = by_name;
        let indices = (0..).take(symbols.entries.len());
        symbols.functions =
            indices.filter(|&index| symbols.symbol(&symbols.entries[index as usize]).is_function()).collect();
        symbols
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Symbols {
        let mut builder = SymbolsBuilder::new(4);
        for (address, name) in [(0x2000, "twice"), (0x1000, "first"), (0x1000, "alias"), (0x3000, "twice")] {
            builder.add(Gva(address), false, 't', name);
        }
        builder.finish()
    }

    #[test]
    fn an_address_belongs_to_the_symbol_before_it() {
        let symbols = three();
        let find = |at| symbols.containing(Gva(at)).map(|(symbol, offset)| (symbol.name, offset));
        assert_eq!(find(0xfff), None);
        assert_eq!(find(0x1000), Some(("first", 0)));
        assert_eq!(find(0x1fff), Some(("first", 0xfff)));
        assert_eq!(find(u64::MAX), Some(("twice", u64::MAX - 0x3000)));
        assert_eq!(symbols.next_behind(Gva(0x1000)), Some(Gva(0x2000)));
        assert_eq!(symbols.next_behind(Gva(0x3000)), None);
    }

    #[test]
    fn a_label_is_no_function() {
        let mut builder = SymbolsBuilder::new(4);
        for (address, kind) in [(0x1000, 't'), (0x1800, 'd'), (0x2000, 'T'), (0x2800, 'd')] {
            builder.add(Gva(address), false, kind, "any");
        }
        let symbols = builder.finish();
        let find =
            |at| symbols.function(Gva(at)).map(|(symbol, next)| (symbol.address.0, next.map(|next| next.0)));
        assert_eq!(find(0xfff), None);
        assert_eq!(find(0x1900), Some((0x1000, Some(0x2000))));
        assert_eq!(find(0x2900), Some((0x2000, None)));
    }

    #[test]
    fn a_name_that_two_have_is_not_the_only_one() {
        let symbols = three();
        assert_eq!(
            symbols.named("twice").map(|symbol| symbol.address.0).collect::<Vec<_>>(),
            [0x2000, 0x3000]
        );
        assert_eq!(symbols.only("twice"), None);
        assert_eq!(symbols.only("alias").map(|symbol| symbol.address), Some(Gva(0x1000)));
        assert_eq!(symbols.only("firs"), None);
    }
}
