//! What of an old function can be filled with traps once nobody is in it, and with which.
//!
//! Somebody may come there that no census knew of: by an address that is kept somewhere. In old code that would go on unseen. A
//! tombstone says where it has come to, and the old code is put back before it goes on.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions};

use super::place::{NoPlace, OldFunction};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Image;
use crate::journal::Edit;
use crate::kernel::running::Running;
use crate::x86::branches::{self, Lead, Leading};

/// The byte of tombstones. Two of them are `in eax, 0xe5` (Intel SDM vol. 2A, IN: E5 ib): a read of four bytes, which leaves the
/// guest with the address of the instruction. In a row of them it is the same from whichever it is begun.
pub const TOMBSTONE: u8 = 0xe5;

/// Code that alternatives are taken from. Branches in it belong to the functions that it is copied into.
const REPLACEMENTS: &str = ".altinstr_replacement";

/// The parts of `old`, a function of `image`, that can be filled, where they were linked for.
///
/// What stays: all that comes before the jump, the jump and the instructions that it is written over, and each instruction with a
/// byte that one of the kernel's tables names. The kernel compares such places with what it has put there before it changes them
/// (`arch/x86/kernel/jump_label.c`, `__jump_label_patch`; 6.1 and 6.12), and they stay whole so that whoever comes to one runs what
/// was always there. An instruction of one byte in front of such a place stays, too: a trap takes two.
pub fn fillable(image: &Image, old: &OldFunction) -> Vec<Range<Gva>> {
    let mut all = Vec::new();
    for part in old.parts() {
        let len = part.end.offset_from(part.start).and_then(|len| usize::try_from(len).ok());
        let code = len.and_then(|len| image.bytes(part.start, len)).unwrap_or_default();
        let mut run = Run::at(part.start);
        for instruction in Decoder::with_ip(64, code, part.start.0, DecoderOptions::NONE) {
            let (start, end) = (Gva(instruction.ip()), Gva(instruction.next_ip()));
            // What cannot be decoded is no code that was compiled, and nobody knows where the next instruction is.
            if instruction.is_invalid() {
                break;
            }
            let is_named = image.sites().overlapping(start, instruction.len() as u64).next().is_some();
            if is_named || old.is_needed(&(start..end)) {
                all.extend(run.end(end));
            } else {
                run.take(end, instruction.len());
            }
        }
        all.extend(run.end(part.end));
    }
    all
}

/// Instructions in a row.
#[derive(Debug)]
struct Run {
    start: Gva,
    /// Behind the last that has room for a trap.
    end: Gva,
}

impl Run {
    fn at(start: Gva) -> Self {
        Self { start, end: start }
    }

    /// One more, which ends at `end`.
    fn take(&mut self, end: Gva, len: usize) {
        if len >= 2 {
            self.end = end;
        }
    }

    /// All so far, if there are any, and another one from `next` on.
    fn end(&mut self, next: Gva) -> Option<Range<Gva>> {
        let run = std::mem::replace(self, Self::at(next));
        (run.start < run.end).then_some(run.start..run.end)
    }
}

/// Refuses a function in which others go on than the function itself: what they come to is not dead.
pub fn refuse_others(image: &Image, old: &OldFunction) -> Result<(), NoPlace> {
    let runs = fillable(image, old);
    let replacements = image.sections().find(|(name, _, _)| *name == REPLACEMENTS);
    let replacements = replacements.map(|(_, start, len)| start..start.wrapping_add(len as u64));
    let is_own = |from: &Gva| {
        old.parts().any(|part| part.contains(from))
            || replacements.as_ref().is_some_and(|code| code.contains(from))
    };
    // A fixup says where it leads to, and not from where.
    let is_other = |lead: &&Leading| lead.kind != Lead::Fixup && !is_own(&lead.from);
    match branches::leading_to(image, &runs).iter().find(is_other) {
        Some(&Leading { to, from, .. }) => Err(NoPlace::Used { function: old.name.clone(), at: to, from }),
        None => Ok(()),
    }
}

/// The edits that fill `old`, a function of the kernel's image.
pub fn edits(kernel: &Running<'_, impl Memory>, old: &OldFunction) -> Vec<Edit> {
    let image = kernel.model().image();
    let edit = |run: Range<Gva>| {
        let len = usize::try_from(run.end.offset_from(run.start)?).ok()?;
        let before = old.home.original(kernel, run.start, len)?;
        Some(Edit { at: old.now(kernel, run.start), before, after: vec![TOMBSTONE; len] })
    };
    fillable(image, old).into_iter().filter_map(edit).collect()
}
