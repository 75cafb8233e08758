//! Who goes to a place: every branch, and every address in the kernel's data, that leads to one of some bytes.
//!
//! A jump that is written over instructions must not be met in its middle. What could lead there is looked for in all of the
//! kernel's text and data, not only in the function itself: hand-written code goes from one function into another.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, OpKind};

use crate::addr::Gva;
use crate::image::{Image, SiteKind};

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

/// One of those that lead to a place, both where they were linked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leading {
    /// Where to.
    pub to: Gva,
    /// Where it is.
    pub from: Gva,
    /// What it is.
    pub kind: Lead,
}

/// Finds everything in `image` that leads to a byte of `places`.
///
/// What it says of instructions is certain; a number that looks like an address counts as one.
pub fn leading_to(image: &Image, places: &[Range<Gva>]) -> Vec<Leading> {
    let wanted = |at: Gva| places.iter().any(|place| place.contains(&at));
    let (Some(first), Some(end)) =
        (places.iter().map(|place| place.start).min(), places.iter().map(|place| place.end).max())
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (_, start, len) in image.sections().filter(|(name, _, _)| CODE_SECTIONS.contains(name)) {
        far(image, start, len, &(first..end), &mut found);
    }
    found.retain(|lead| wanted(lead.to));
    near(image, places, &wanted, &mut found);
    let labels = image.sites().jump_labels().iter().filter(|label| wanted(label.target));
    found.extend(labels.map(|label| Leading { to: label.target, from: label.code, kind: Lead::JumpLabel }));
    let fixups = image.sites().iter().filter(|site| site.kind == SiteKind::Fixup && wanted(site.start));
    found.extend(fixups.map(|site| Leading { to: site.start, from: site.start, kind: Lead::Fixup }));
    let pointers = image.pointers().filter(|(_, to)| wanted(*to));
    found.extend(pointers.map(|(from, to)| Leading { to, from, kind: Lead::Pointer }));
    found.sort_unstable();
    found.dedup();
    found
}

/// Adds the instructions with a distance of 32 bits at their end. These are found by their bytes, and believed if the function
/// that they are in has such an instruction.
fn far(image: &Image, start: Gva, len: usize, places: &Range<Gva>, found: &mut Vec<Leading>) {
    let Some(code) = image.bytes(start, len) else { return };
    let (first, room) = (places.start.0, places.end.0 - places.start.0);
    let mut next = start.0.wrapping_add(3);
    for distance in code.windows(4) {
        next = next.wrapping_add(1);
        let distance = i32::from_le_bytes([distance[0], distance[1], distance[2], distance[3]]);
        if next.wrapping_add_signed(distance.into()).wrapping_sub(first) >= room {
            continue;
        }
        let inside = Gva(next - 1);
        let begin = image.symbols().function(inside).map_or(start, |(symbol, _)| symbol.address.max(start));
        let Some(function) = image.bytes(begin, span(begin, Gva(next))) else { continue };
        found.extend(leads(begin, function));
    }
}

/// Adds what is close enough for a short branch: in the functions around each place.
fn near(image: &Image, places: &[Range<Gva>], wanted: &dyn Fn(Gva) -> bool, found: &mut Vec<Leading>) {
    for place in places {
        let mut at = Gva(place.start.0.saturating_sub(SHORT));
        let end = place.end.wrapping_add(SHORT);
        while at < end {
            let Some((symbol, next)) = image.symbols().function(at) else { break };
            let next = next.unwrap_or(end).min(Gva(symbol.address.0.saturating_add(1 << 20)));
            let code = image.bytes(symbol.address, span(symbol.address, next)).unwrap_or_default();
            found.extend(leads(symbol.address, code).filter(|lead| wanted(lead.to)));
            if next <= at {
                break;
            }
            at = next;
        }
    }
}

fn span(start: Gva, end: Gva) -> usize {
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
    fn branches_calls_and_addresses_taken_are_found() {
        // jne +2; call 0x1010; lea 0x3(%rip),%rax; jmp *%rax; ret
        const CODE: [u8; 17] = [0x75, 2, 0xe8, 9, 0, 0, 0, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0xff, 0xe0, 0xc3];
        let to: Vec<u64> = leads(Gva(0x1000), &CODE).map(|lead| lead.to.0).collect();
        assert_eq!(to, [0x1004, 0x1010, 0x1011]);
    }
}
