//! The kernel's unwind tables, ORC (Documentation/arch/x86/orc-unwinder.rst; `arch/x86/include/asm/orc_types.h`).
//!
//! An entry says how to find the caller's frame from any instruction between its address and the next entry's. The bits
//! of an entry were rearranged in 6.4; how they lie is read from the kernel's own types.

use std::fmt;
use std::ops::Range;

use super::ImageError;
use super::btf::Btf;
use crate::addr::Gva;
use crate::bytes::{i16_at, i32_at, u16_at};

const TABLE: &str = ".orc_unwind";
/// Bytes of one entry: two 16-bit offsets and 16 bits of fields.
const ENTRY: usize = 6;

/// What an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The stack pointer, in this frame.
    Sp,
    /// The frame pointer, in this frame.
    Bp,
    /// What is on the stack at the frame pointer plus the offset.
    BpIndirect,
    /// What is on the stack at the stack pointer; the offset is added to it.
    SpIndirect,
    /// A register that holds the stack pointer for a while.
    Register(Register),
    /// The caller's stack pointer.
    PreviousSp,
    /// Nothing: for the stack pointer, an end of the stack or of knowledge; for the frame pointer, that it is unchanged.
    Undefined,
}

/// A register other than the stack and frame pointers that code uses as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// RDX
    Rdx,
    /// RDI
    Rdi,
    /// R10
    R10,
    /// R13
    R13,
}

/// What is at the place that an entry leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A return address is below it.
    Call,
    /// It is a whole `struct pt_regs`.
    Registers,
    /// It is the end of one: RIP, CS, flags, RSP and SS, as the processor pushes them.
    Exception,
    /// The outermost frame.
    End,
    /// Nobody knows.
    Undefined,
}

/// How to go from one frame to the one that called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrcEntry {
    /// What the caller's stack pointer is found from.
    pub sp: Base,
    /// And how far from there, in bytes.
    pub sp_offset: i16,
    /// What the caller's frame pointer is found from.
    pub bp: Base,
    /// And how far from there, in bytes.
    pub bp_offset: i16,
    /// What is there.
    pub kind: FrameKind,
    /// Whether the frame that this leads to was interrupted: its address is then that of its next instruction, and
    /// otherwise that behind a call.
    pub signal: bool,
}

/// How the fields of an entry lie in its last 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrcLayout {
    type_shift: u32,
    type_bits: u32,
    /// Up to 6.3 the end is a bit of its own.
    end_shift: Option<u32>,
    /// Since 6.4 so is whether a frame was interrupted.
    signal_shift: Option<u32>,
}

impl OrcLayout {
    pub(super) fn of(types: &Btf) -> Result<Self, ImageError> {
        let of = |name: &str| types.field("orc_entry", name);
        let wrong = |why: String| ImageError::malformed(".BTF", 0, why);
        let field = |name: &str| of(name).map_err(|error| wrong(error.to_string()));
        let place = |name: &str, at: u64| {
            let found = field(name)?;
            let fits = found.bit_offset >= at && found.bit_offset + found.bits <= at + 16;
            let shift = u32::try_from(found.bit_offset.wrapping_sub(at)).ok().filter(|_| fits);
            shift.ok_or_else(|| wrong(format!("`struct orc_entry` has `{name}` in an unknown place")))
        };
        let known = types.size_of("orc_entry") == Ok(ENTRY as u64)
            && place("sp_offset", 0)? == 0
            && place("bp_offset", 16)? == 0
            && place("sp_reg", 32)? == 0
            && place("bp_reg", 32)? == 4;
        if !known {
            return Err(wrong("`struct orc_entry` has an unknown layout".to_owned()));
        }
        let optional = |name: &str| if of(name).is_ok() { place(name, 32).map(Some) } else { Ok(None) };
        let type_bits = u32::try_from(field("type")?.bits).unwrap_or(0);
        let (end_shift, signal_shift) = (optional("end")?, optional("signal")?);
        Ok(Self { type_shift: place("type", 32)?, type_bits, end_shift, signal_shift })
    }

    /// Reads one entry.
    pub(crate) fn entry(self, bytes: &[u8], at: usize) -> Option<OrcEntry> {
        let (sp_offset, bp_offset) = (i16_at(bytes, at)?, i16_at(bytes, at + 2)?);
        let fields = u16_at(bytes, at + 4)?;
        let (sp, bp) = (base(fields & 0xf), base(fields >> 4 & 0xf));
        let number = u32::from(fields) >> self.type_shift & ((1 << self.type_bits) - 1);
        let kind = match self.end_shift {
            // UNWIND_HINT_TYPE_* and the bit (include/linux/objtool.h; arch/x86/kernel/unwind_orc.c, 6.1).
            Some(end) if sp == Base::Undefined && fields >> end & 1 == 1 => FrameKind::End,
            Some(_) if sp == Base::Undefined => FrameKind::Undefined,
            Some(_) => [FrameKind::Call, FrameKind::Registers, FrameKind::Exception]
                .get(number as usize)
                .copied()
                .unwrap_or(FrameKind::Undefined),
            // ORC_TYPE_* (6.4).
            None => [
                FrameKind::Undefined,
                FrameKind::End,
                FrameKind::Call,
                FrameKind::Registers,
                FrameKind::Exception,
            ]
            .get(number as usize)
            .copied()
            .unwrap_or(FrameKind::Undefined),
        };
        let signal = match self.signal_shift {
            Some(shift) => fields >> shift & 1 == 1,
            None => matches!(kind, FrameKind::Registers | FrameKind::Exception),
        };
        Some(OrcEntry { sp, sp_offset, bp, bp_offset, kind, signal })
    }
}

/// `ORC_REG_*`, the same in 6.1 and 6.12.
fn base(number: u16) -> Base {
    match number {
        1 => Base::PreviousSp,
        2 => Base::Register(Register::Rdx),
        3 => Base::Register(Register::Rdi),
        4 => Base::Bp,
        5 => Base::Sp,
        6 => Base::Register(Register::R10),
        7 => Base::Register(Register::R13),
        8 => Base::BpIndirect,
        9 => Base::SpIndirect,
        _ => Base::Undefined,
    }
}

/// The table of a kernel or module, by address.
#[derive(Clone)]
pub struct OrcTable {
    layout: OrcLayout,
    /// The first address of each entry, sorted.
    addresses: Vec<Gva>,
    entries: Vec<u8>,
}

impl fmt::Debug for OrcTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrcTable").field("entries", &self.len()).finish_non_exhaustive()
    }
}

impl OrcTable {
    /// Bytes of one entry in memory.
    pub(crate) const ENTRY: usize = ENTRY;

    /// How the entries of this kernel lie.
    pub(crate) fn layout(&self) -> OrcLayout {
        self.layout
    }

    /// Reads `.orc_unwind_ip`, whose first byte is at `ips_at`, and `.orc_unwind`, in the order of addresses.
    pub(crate) fn read(
        ips_at: Gva,
        ips: &[u8],
        entries: Vec<u8>,
        layout: OrcLayout,
    ) -> Result<Self, ImageError> {
        let count = ips.len() / 4;
        if entries.len() / ENTRY != count || count == 0 {
            let why = format!("{} bytes of entries for {count} addresses", entries.len());
            return Err(ImageError::malformed(TABLE, 0, why));
        }
        // Each address is relative to the place where it is written.
        let address = |index: usize| {
            let at = ips_at.wrapping_add(4 * index as u64);
            at.wrapping_offset(i32_at(ips, 4 * index).map_or(0, i64::from))
        };
        let addresses: Vec<Gva> = (0..count).map(address).collect();
        if let Some(index) = (1..count).find(|&index| addresses[index] < addresses[index - 1]) {
            return Err(ImageError::malformed(".orc_unwind_ip", 4 * index, "the addresses are not sorted"));
        }
        Ok(Self { layout, addresses, entries })
    }

    /// How the fields lie in 6.1, or since 6.4.
    #[cfg(fuzzing)]
    pub(crate) fn layout_for_fuzzing(new: bool) -> OrcLayout {
        if new {
            OrcLayout { type_shift: 8, type_bits: 3, end_shift: None, signal_shift: Some(11) }
        } else {
            OrcLayout { type_shift: 8, type_bits: 2, end_shift: Some(10), signal_shift: None }
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The first and the last address that there is an entry for.
    pub fn range(&self) -> Option<(Gva, Gva)> {
        Some((*self.addresses.first()?, *self.addresses.last()?))
    }

    /// The number of the entry that is for the instructions in `text`, and for no others.
    pub(crate) fn only(&self, text: &Range<Gva>) -> Option<usize> {
        let behind = self.addresses.partition_point(|&address| address <= text.start);
        let index = behind.checked_sub(1)?;
        let is_it = self.addresses[index] == text.start && self.addresses.get(behind) == Some(&text.end);
        is_it.then_some(index)
    }

    /// The bytes of the entry for an instruction, as [`OrcTable::entry`] finds it.
    pub(crate) fn raw(&self, at: Gva) -> Option<[u8; ENTRY]> {
        let behind = self.addresses.partition_point(|&address| address <= at);
        self.entries[behind.checked_sub(1)? * ENTRY..].first_chunk().copied()
    }

    /// The entry for an instruction: the last one at its address or before. The one for a return address is that of the
    /// byte before it, because the call may be the last instruction of its function.
    pub fn entry(&self, at: Gva) -> Option<OrcEntry> {
        let behind = self.addresses.partition_point(|&address| address <= at);
        self.layout.entry(&self.entries, behind.checked_sub(1)? * ENTRY)
    }
}
