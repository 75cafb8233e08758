//! The guest's kprobes, out of its memory, and the code that each has made for itself (kernel/kprobes.c,
//! arch/x86/kernel/kprobes; Linux 6.1 and 6.12).

use std::ops::Range;

use super::list::{Cut, Listed};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Btf;
use crate::limits::PROBES;

/// Lists of the kernel's table (`KPROBE_TABLE_SIZE`).
const LISTS: usize = 64;
/// Bytes of a slot: the longest instruction, and a jump behind it (`MAX_INSN_SIZE`, and `kprobe_insn_cache.insn_size`).
const SLOT_BYTES: u64 = 16;
/// Bytes of a jump, and the most that an optimized probe copies: whole instructions over one.
const JUMP_BYTES: u64 = 5;
const COPIED_BYTES: u64 = JUMP_BYTES + SLOT_BYTES;

/// Where the kernel keeps its probes, if it has any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeLayout {
    table: Gva,
    address: u64,
    slot: u64,
    detour: Option<DetourLayout>,
}

/// Of probes that are jumps.
#[derive(Debug, Clone, Copy)]
struct DetourLayout {
    /// The handler by which such a probe is told from others, and the offset of it.
    handler: Gva,
    pre_handler: u64,
    /// Offset of the detour's address and of how many bytes of the original it holds.
    address: u64,
    copied: u64,
    /// How long the part is that every detour begins with.
    template: u64,
}

impl ProbeLayout {
    pub(super) fn of(types: &Btf, one: impl Fn(&str) -> Option<Gva>) -> Option<Self> {
        let detour = || {
            let (start, end) = (one("optprobe_template_entry")?, one("optprobe_template_end")?);
            let offset = |member: &str| types.offset("optimized_kprobe", member).ok();
            Some(DetourLayout {
                handler: one("aggr_pre_handler")?,
                pre_handler: types.offset("kprobe", "pre_handler").ok()?,
                address: offset("optinsn.insn")?,
                copied: offset("optinsn.size")?,
                template: end.offset_from(start)?,
            })
        };
        Some(Self {
            table: one("kprobe_table")?,
            address: types.offset("kprobe", "addr").ok()?,
            slot: types.offset("kprobe", "ainsn.insn").ok()?,
            detour: detour(),
        })
    }
}

/// A probe that the guest says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The instruction that it is on.
    pub at: Gva,
    /// A copy of that instruction, which is run in its place, and a jump back.
    pub slot: Option<Range<Gva>>,
    /// What is jumped to in its place once the probe is optimized.
    pub detour: Option<Detour>,
}

/// A call of the probe's handlers with all registers saved, the original instructions, and a jump back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    /// All of it.
    pub text: Range<Gva>,
    /// Where the original instructions begin in it.
    pub copied_at: Gva,
    /// How many bytes they have.
    pub copied: u64,
}

impl ProbeLayout {
    /// The lists that the table is made of, where they are in `kernel`. `struct hlist_head` and `hlist_node` begin with the pointer to
    /// the next node; a probe begins with its node.
    pub(super) fn lists(&self, kernel: &Running<'_, impl Memory>) -> [Gva; LISTS] {
        let table = kernel.now(self.table);
        std::array::from_fn(|list| table.wrapping_add(list as u64 * 8))
    }
}

/// Every probe in the kernel's table, by address; none in a kernel that has no kprobes.
pub fn probes(kernel: &Running<'_, impl Memory>) -> Result<Listed<Probe>, ReadError> {
    let Some(layout) = &kernel.model().probes else { return Ok(Listed::nothing()) };
    let mut found = Vec::new();
    let mut cut = None;
    for list in layout.lists(kernel) {
        let mut node = kernel.space().pointer(list)?;
        while node.0 != 0 {
            if found.len() >= PROBES {
                cut = Some(Cut { what: "probes", limit: PROBES });
                break;
            }
            found.push(probe(kernel, layout, node)?);
            node = kernel.space().pointer(node)?;
        }
    }
    found.sort_unstable_by_key(|probe| probe.at);
    found.dedup();
    Ok(Listed { entries: found, cut })
}

/// Whether one of `probes`, which are by address, may have rewritten the byte at `at`: the first byte of its instruction, or a
/// jump over whole instructions if it is optimized (`arch/x86/kernel/kprobes/opt.c`).
pub(crate) fn is_rewritten(probes: &[Probe], at: Gva) -> bool {
    let behind = probes.partition_point(|probe| probe.at <= at);
    let nearest = behind.checked_sub(1).map(|index| probes[index].at);
    nearest.and_then(|start| at.offset_from(start)).is_some_and(|far| far < JUMP_BYTES)
}

fn probe(kernel: &Running<'_, impl Memory>, layout: &ProbeLayout, node: Gva) -> Result<Probe, ReadError> {
    let space = kernel.space();
    let pointer = |offset| space.pointer(node.wrapping_add(offset));
    let slot = Some(pointer(layout.slot)?).filter(|slot| slot.0 != 0);
    let detour = match &layout.detour {
        Some(detour) if pointer(detour.pre_handler)? == kernel.now(detour.handler) => {
            let start = pointer(detour.address)?;
            let copied = space.u64(node.wrapping_add(detour.copied))?;
            let copied_at = start.wrapping_add(detour.template);
            let end = copied_at.wrapping_add(copied.min(COPIED_BYTES) + JUMP_BYTES);
            let is_there = start.0 != 0 && (1..=COPIED_BYTES).contains(&copied);
            is_there.then_some(Detour { text: start..end, copied_at, copied })
        }
        _ => None,
    };
    Ok(Probe {
        at: pointer(layout.address)?,
        slot: slot.map(|slot| slot..slot.wrapping_add(SLOT_BYTES)),
        detour,
    })
}
