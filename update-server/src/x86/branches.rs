//! Who goes to a place: every branch, and every address in the kernel's data, that leads to one of some bytes.
//!
//! A jump that is written over instructions must not be met in its middle. What could lead there is looked for in all of the
//! kernel's text and data, or the module's, not only in the function itself: hand-written code goes from one function into another.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, OpKind};

use crate::addr::Gva;
use crate::image::{Image, SiteKind, Sites, Symbol, Symbols};

/// Where code is that the kernel runs, or takes in the place of other code (`.altinstr_replacement`). Init code is gone before
/// anybody patches.
const CODE_SECTIONS: [&str; 2] = [".text", ".altinstr_replacement"];
/// How far a short branch goes (Intel SDM vol. 2A, JMP rel8).
const SHORT: u64 = 128;

/// What leads to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lead {
    /// A branch or call, or an instruction that takes the address.
    Instruction,
    /// A static key, once it is flipped.
    JumpLabel,
    /// Where the kernel goes on after a fault.
    Fixup,
    /// A number in the kernel's data or code.
    Pointer,
}

/// One of those that lead to a place, both where they were linked for, or where the module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leading {
    /// Where to.
    pub to: Gva,
    /// Where it is.
    pub from: Gva,
    /// What it is.
    pub kind: Lead,
}

/// Places that something may lead to.
struct Wanted {
    /// By address, apart from each other.
    places: Vec<Range<Gva>>,
}

impl Wanted {
    fn new(places: &[Range<Gva>]) -> Self {
        let mut sorted: Vec<_> = places.iter().filter(|place| !place.is_empty()).cloned().collect();
        sorted.sort_unstable_by_key(|place| place.start);
        let mut places: Vec<Range<Gva>> = Vec::with_capacity(sorted.len());
        for place in sorted {
            match places.last_mut() {
                Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
                _ => places.push(place),
            }
        }
        Self { places }
    }

    fn contains(&self, at: Gva) -> bool {
        let next = self.places.partition_point(|place| place.start <= at);
        next.checked_sub(1).is_some_and(|index| self.places[index].contains(&at))
    }

    /// From the first of them to the last, if there are any.
    fn span(&self) -> Option<Range<Gva>> {
        Some(self.places.first()?.start..self.places.last()?.end)
    }
}

/// Finds everything in `image` that leads to a byte of `places`. All code is gone through once, however many these are.
///
/// What it says of instructions is certain; a number that looks like an address counts as one.
pub fn leading_to(image: &Image, places: &[Range<Gva>]) -> Vec<Leading> {
    let wanted = Wanted::new(places);
    let Some(span) = wanted.span() else { return Vec::new() };
    let mut found = Vec::new();
    for (_, start, len) in image.sections().filter(|(name, _, _)| CODE_SECTIONS.contains(name)) {
        far(image, start, len, &wanted, &span, &mut found);
    }
    near(image, &wanted, &mut found);
    found.extend(tabled(image.sites()).filter(|lead| wanted.contains(lead.to)));
    let pointers = image.pointers().filter(|(_, to)| wanted.contains(*to));
    found.extend(pointers.map(|(from, to)| Leading { to, from, kind: Lead::Pointer }));
    found.sort_unstable();
    found.dedup();
    found
}

/// A module, as it is in the guest's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModuleBytes<'a> {
    /// Its text.
    pub(crate) text: (Gva, &'a [u8]),
    /// All memory that it has.
    pub(crate) memory: &'a [(Gva, Vec<u8>)],
    /// Its symbols.
    pub(crate) symbols: &'a Symbols,
    /// What its tables say.
    pub(crate) sites: &'a Sites,
}

impl ModuleBytes<'_> {
    /// Finds everything in the module that leads to a byte of `places`, which are where the module is now.
    ///
    /// Each function is decoded from its beginning. A word that looks like an address counts as one.
    pub(crate) fn leading_to(self, places: &[Range<Gva>]) -> Vec<Leading> {
        let wanted = Wanted::new(places);
        let (start, text) = self.text;
        let end = start.wrapping_add(text.len() as u64);
        let functions = self.symbols.iter().filter(Symbol::is_function);
        let within = functions.map(|symbol| symbol.address).filter(|at| (start..end).contains(at));
        // What no symbol names may be in front of them.
        let mut begins: Vec<Gva> = std::iter::once(start).chain(within).collect();
        begins.dedup();
        let mut found = Vec::new();
        let ends = begins.iter().skip(1).chain(std::iter::once(&end));
        for (&begin, &end) in begins.iter().zip(ends) {
            let code = text.get(length(start, begin)..length(start, end)).unwrap_or_default();
            found.extend(leads(begin, code).filter(|lead| wanted.contains(lead.to)));
        }
        found.extend(tabled(self.sites).filter(|lead| wanted.contains(lead.to)));
        for (start, bytes) in self.memory {
            let words = (0_u64..).step_by(8).zip(bytes.as_chunks::<8>().0);
            let words =
                words.map(|(offset, &word)| (start.wrapping_add(offset), Gva(u64::from_le_bytes(word))));
            let leading = words.filter(|(_, to)| wanted.contains(*to));
            found.extend(leading.map(|(from, to)| Leading { to, from, kind: Lead::Pointer }));
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Where tables say that the kernel goes on.
fn tabled(sites: &Sites) -> impl Iterator<Item = Leading> {
    let lead = |to, from, kind| Leading { to, from, kind };
    let labels = sites.jump_labels().iter().map(move |label| lead(label.target, label.code, Lead::JumpLabel));
    let fixups = sites.iter().filter(|site| site.kind == SiteKind::Fixup);
    labels.chain(fixups.map(move |site| lead(site.start, site.start, Lead::Fixup)))
}

/// Adds the instructions with a distance of 32 bits at their end to somewhere in `span`. These are found by their bytes, and
/// believed if the function that they are in has such an instruction.
fn far(image: &Image, start: Gva, len: usize, wanted: &Wanted, span: &Range<Gva>, found: &mut Vec<Leading>) {
    let Some(code) = image.bytes(start, len) else { return };
    let (first, room) = (span.start.0, span.end.0 - span.start.0);
    let mut next = start.0.wrapping_add(3);
    for distance in code.windows(4) {
        next = next.wrapping_add(1);
        let distance = i32::from_le_bytes([distance[0], distance[1], distance[2], distance[3]]);
        let to = next.wrapping_add_signed(distance.into());
        // Most are nowhere near, which is seen sooner.
        if to.wrapping_sub(first) >= room || !wanted.contains(Gva(to)) {
            continue;
        }
        let inside = Gva(next - 1);
        let begin = image.symbols().function(inside).map_or(start, |(symbol, _)| symbol.address.max(start));
        let Some(function) = image.bytes(begin, length(begin, Gva(next))) else { continue };
        found.extend(leads(begin, function).filter(|lead| wanted.contains(lead.to)));
    }
}

/// Adds what is close enough for a short branch: in the functions around each place.
fn near(image: &Image, wanted: &Wanted, found: &mut Vec<Leading>) {
    for place in &wanted.places {
        let mut at = Gva(place.start.0.saturating_sub(SHORT));
        let end = place.end.wrapping_add(SHORT);
        while at < end {
            let Some((symbol, next)) = image.symbols().function(at) else { break };
            let next = next.unwrap_or(end).min(Gva(symbol.address.0.saturating_add(1 << 20)));
            let code = image.bytes(symbol.address, length(symbol.address, next)).unwrap_or_default();
            found.extend(leads(symbol.address, code).filter(|lead| wanted.contains(lead.to)));
            if next <= at {
                break;
            }
            at = next;
        }
    }
}

fn length(start: Gva, end: Gva) -> usize {
    end.offset_from(start).and_then(|len| usize::try_from(len).ok()).unwrap_or(0)
}

/// Where the instructions of `code`, which is linked for `start`, lead to.
fn leads(start: Gva, code: &[u8]) -> impl Iterator<Item = Leading> {
    let mut decoder = Decoder::with_ip(64, code, start.0, DecoderOptions::NONE);
    std::iter::from_fn(move || {
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let from = Gva(instruction.ip());
            let branch = instruction.near_branch_target();
            let branches = matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32);
            let to = if branches {
                branch
            } else if instruction.is_ip_rel_memory_operand() {
                instruction.ip_rel_memory_address()
            } else {
                continue;
            };
            return Some(Leading { to: Gva(to), from, kind: Lead::Instruction });
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_in_a_module_leads_to_a_place_is_found() {
        use crate::image::{JumpLabel, Site, SymbolsBuilder};
        // A jump with a distance of 32 bits to 0x1013, half of an instruction that no symbol is in front of, jz to 0x1013.
        let mut text = vec![0x90; 0x20];
        text[..5].copy_from_slice(&[0xe9, 0x0e, 0, 0, 0]);
        text[7] = 0xe8;
        text[8..10].copy_from_slice(&[0x74, 9]);
        let mut symbols = SymbolsBuilder::new(2);
        symbols.add(Gva(0x1008), false, 't', "f");
        symbols.add(Gva(0x9000), false, 't', "elsewhere");
        let mut data = vec![0; 0x1b];
        data[8..16].copy_from_slice(&0x1012_u64.to_le_bytes());
        // Not where words are.
        data[17..25].copy_from_slice(&0x1012_u64.to_le_bytes());
        let fixup = |start| Site { start: Gva(start), len: 1, kind: SiteKind::Fixup };
        let label = |target| JumpLabel { code: Gva(0x1001), target: Gva(target) };
        let sites = Sites::new(vec![fixup(0x1014), fixup(0x1015)]);
        let bytes = ModuleBytes {
            text: (Gva(0x1000), &text),
            memory: &[(Gva(0x2000), data)],
            symbols: &symbols.finish(),
            sites: &sites.with_jump_labels(vec![label(0x1010), label(0x100f)]),
        };
        let found = bytes.leading_to(&[Gva(0x1010)..Gva(0x1015)]);
        let found: Vec<_> = found.iter().map(|lead| (lead.to.0, lead.from.0, lead.kind)).collect();
        let expected = [
            (0x1010, 0x1001, Lead::JumpLabel),
            (0x1012, 0x2008, Lead::Pointer),
            (0x1013, 0x1000, Lead::Instruction),
            (0x1013, 0x1008, Lead::Instruction),
            (0x1014, 0x1014, Lead::Fixup),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn branches_calls_and_addresses_taken_are_found() {
        // jne +2; call 0x1010; lea 0x3(%rip),%rax; jmp *%rax; ret
        const CODE: [u8; 17] = [0x75, 2, 0xe8, 9, 0, 0, 0, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0xff, 0xe0, 0xc3];
        let to: Vec<u64> = leads(Gva(0x1000), &CODE).map(|lead| lead.to.0).collect();
        assert_eq!(to, [0x1004, 0x1010, 0x1011]);
    }
}
