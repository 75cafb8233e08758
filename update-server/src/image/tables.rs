//! The tables in which a kernel and its modules list the places of their text that may change: how their entries lie.

use iced_x86::{Decoder, DecoderOptions};

use super::ImageError;
use super::btf::Btf;
use super::sites::{JumpLabel, Site, SiteKind};
use crate::addr::Gva;
use crate::bytes::{i32_at, u64_at};
use crate::x86::INT3;

/// Bytes of code from a place on that are enough to measure it: the longest instruction behind four bytes of others.
pub(crate) const CODE: usize = 19;
/// Bytes of a direct call or jump, which the kernel replaces as a whole.
const CALL: u8 = 5;
/// Bytes of an entry of `__jump_table`.
const JUMP_ENTRY: usize = 16;
/// The NOP that has room for a call: functions that may be traced begin with it, and BPF programs do
/// (`arch/x86/include/asm/nops.h`, `BYTES_NOP5`).
pub(crate) const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// A table's bytes, and where the first one is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    pub(crate) name: &'static str,
    pub(crate) at: Gva,
    pub(crate) bytes: &'a [u8],
}

/// How the entries of `.altinstructions` lie: `struct alt_instr` (`arch/x86/include/asm/alternative.h`), which has been
/// rearranged several times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AlternativeLayout {
    bytes: usize,
    place: usize,
    len: usize,
}

impl AlternativeLayout {
    /// As the kernel's types have it; `None` if they have none.
    pub(crate) fn of(types: &Btf) -> Option<Self> {
        const NAME: &str = "alt_instr";
        let [bytes, place, len] = [
            types.size_of(NAME).ok()?,
            types.offset(NAME, "instr_offset").ok()?,
            types.offset(NAME, "instrlen").ok()?,
        ]
        .map(|number| usize::try_from(number).unwrap_or(0));
        (place + 4 <= bytes && len < bytes).then_some(Self { bytes, place, len })
    }
}

/// What belongs to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// So many bytes.
    Bytes(u8),
    /// One instruction.
    Instruction,
    /// A jump of two or five bytes, or the nop in its stead.
    Jump,
    /// A call or jump with its prefix or condition, or the instructions and nops in its stead.
    Call,
    /// A LOCK prefix, or what stands in its stead; nothing if another prefix comes first.
    Lock,
}

/// What an entry says of one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its first byte.
    pub(crate) start: Gva,
    kind: SiteKind,
    extent: Extent,
}

/// At a place there is no instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoCode;

impl Place {
    /// The site, with the code from its start on, of which [`CODE`] bytes are enough; `None` where the kernel never changes
    /// anything.
    pub(crate) fn measure(self, code: &[u8]) -> Result<Option<Site>, NoCode> {
        let len = match self.extent {
            Extent::Bytes(len) => len,
            // Under way from one to the other it is counted as the longer one.
            Extent::Jump | Extent::Call if code.first() == Some(&INT3) => CALL,
            Extent::Instruction | Extent::Jump => whole(code, 1)?,
            Extent::Call => whole(code, CALL)?,
            // `alternatives_smp_lock`, as long as it stands at all.
            Extent::Lock if matches!(code.first(), Some(0xf0 | 0x3e)) => 1,
            Extent::Lock => return Ok(None),
        };
        Ok(Some(Site { start: self.start, len, kind: self.kind }))
    }
}

/// Bytes of the whole instructions at the start of `code` that have at least `least` bytes together.
fn whole(code: &[u8], least: u8) -> Result<u8, NoCode> {
    let mut decoder = Decoder::new(64, &code[..code.len().min(CODE)], DecoderOptions::NONE);
    while decoder.position() < usize::from(least) {
        if decoder.decode().is_invalid() {
            return Err(NoCode);
        }
    }
    u8::try_from(decoder.position()).map_err(|_| NoCode)
}

impl Table<'_> {
    /// What a 32-bit number at `at` points to: it counts from where it is written.
    pub(crate) fn pointee(self, at: usize) -> Gva {
        let from = self.at.wrapping_add(at as u64);
        from.wrapping_offset(i32_at(self.bytes, at).map_or(0, i64::from))
    }

    /// The table without what was filled with zeros behind it, where it is not known how long it is: no entry is all zeros.
    pub(crate) fn trimmed(self, kind: SiteKind, alternatives: Option<AlternativeLayout>) -> Self {
        let size = entry_bytes(kind, alternatives).unwrap_or(1);
        let used = self.bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let len = used.next_multiple_of(size).min(self.bytes.len() / size * size);
        Self { bytes: &self.bytes[..len], ..self }
    }

    /// The entries of `__jump_table`: `struct jump_entry` (`include/linux/jump_label.h`) has the code, the target, and the key.
    pub(crate) fn jump_labels(self) -> Vec<JumpLabel> {
        let whole = self.bytes.len() / JUMP_ENTRY * JUMP_ENTRY;
        let label = |at| JumpLabel { code: self.pointee(at), target: self.pointee(at + 4) };
        (0..whole).step_by(JUMP_ENTRY).map(label).collect()
    }

    /// What its entries say of a kind's sites; that of exceptions lists the fixups, too.
    pub(crate) fn places(
        self,
        kind: SiteKind,
        alternatives: Option<AlternativeLayout>,
    ) -> Result<Vec<Place>, ImageError> {
        let malformed = |why: String| ImageError::malformed(self.name, self.bytes.len(), why);
        let size = entry_bytes(kind, alternatives)
            .ok_or_else(|| malformed("entries of an unknown size".to_owned()))?;
        if !self.bytes.len().is_multiple_of(size) {
            return Err(malformed(format!("no whole number of entries of {size} bytes")));
        }
        let mut found = Vec::with_capacity(self.bytes.len() / size);
        for at in (0..self.bytes.len()).step_by(size) {
            let start = self.pointee(at);
            let place = |start, extent| Place { start, kind, extent };
            match kind {
                // The build clears those of functions that others have replaced (`scripts/sorttable.c`, 6.12).
                SiteKind::Ftrace => {
                    let start = u64_at(self.bytes, at).filter(|&start| start != 0);
                    found.extend(start.map(|start| place(Gva(start), Extent::Bytes(5))));
                }
                SiteKind::Alternative => found.extend(alternatives.map(|layout| {
                    place(self.pointee(at + layout.place), Extent::Bytes(self.bytes[at + layout.len]))
                })),
                // `struct paravirt_patch_site` (arch/x86/include/asm/paravirt_types.h, 6.1): address, type, length.
                SiteKind::Paravirt => {
                    let start = Gva(u64_at(self.bytes, at).unwrap_or(0));
                    found.push(place(start, Extent::Bytes(self.bytes[at + 9])));
                }
                SiteKind::JumpLabel => found.push(place(start, Extent::Jump)),
                SiteKind::StaticCall => found.push(place(start, Extent::Call)),
                SiteKind::Bug => found.push(place(start, Extent::Bytes(2))),
                SiteKind::Exception | SiteKind::Fixup => {
                    found.push(Place { start, kind: SiteKind::Exception, extent: Extent::Instruction });
                    let fixup = self.pointee(at + 4);
                    found.push(Place { start: fixup, kind: SiteKind::Fixup, extent: Extent::Bytes(1) });
                }
                // The linker fills a page with zeros, which are no entries.
                _ if i32_at(self.bytes, at) == Some(0) => {}
                SiteKind::Retpoline => found.push(place(start, Extent::Call)),
                SiteKind::SmpLock => found.push(place(start, Extent::Lock)),
                SiteKind::Endbr => found.push(place(start, Extent::Bytes(4))),
                _ => found.push(place(start, Extent::Bytes(5))),
            }
        }
        Ok(found)
    }
}

/// Bytes of one entry of a kind's table; `None` if that is unknown, or the kind has no such table.
pub(crate) fn entry_bytes(kind: SiteKind, alternatives: Option<AlternativeLayout>) -> Option<usize> {
    match kind {
        SiteKind::Alternative => alternatives.map(|layout| layout.bytes),
        SiteKind::JumpLabel => Some(JUMP_ENTRY),
        SiteKind::Paravirt => Some(16),
        // `struct static_call_site` (include/linux/static_call_types.h): site, key.
        SiteKind::StaticCall | SiteKind::Ftrace => Some(8),
        SiteKind::Retpoline | SiteKind::Return | SiteKind::Call | SiteKind::Endbr | SiteKind::SmpLock => {
            Some(4)
        }
        // `struct bug_entry` (include/asm-generic/bug.h), with file and line: place, file, line, flags. And `struct
        // exception_table_entry` (arch/x86/include/asm/extable.h): instruction, fixup, data.
        SiteKind::Bug | SiteKind::Exception | SiteKind::Fixup => Some(12),
        SiteKind::FtraceCaller | SiteKind::StaticCallTrampoline | SiteKind::RuntimeConstant => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(extent: Extent, code: &[u8]) -> Option<u8> {
        let place = Place { start: Gva(0x1000), kind: SiteKind::Call, extent };
        place.measure(code).unwrap_or(None).map(|site| site.len)
    }

    #[test]
    fn sites_are_measured_before_and_after_the_kernel_has_changed_them() {
        let table: [(Extent, &[u8], Option<u8>); 14] = [
            // jmp, short jmp, their nops, and a jump under way
            (Extent::Jump, &[0xe9, 1, 2, 3, 4, 0x90], Some(5)),
            (Extent::Jump, &[0xeb, 0x10, 0x90], Some(2)),
            (Extent::Jump, &[0x66, 0x90, 0x90], Some(2)),
            (Extent::Jump, &[0x0f, 0x1f, 0x44, 0, 0, 0x90], Some(5)),
            (Extent::Jump, &[0xcc, 0x90], Some(5)),
            // call thunk; call *%rax with a nop; cs call thunk; call *%r8 with a nop; jne thunk; a return for a static call
            (Extent::Call, &[0xe8, 1, 2, 3, 4, 0x90], Some(5)),
            (Extent::Call, &[0xff, 0xd0, 0x0f, 0x1f, 0x00, 0x90], Some(5)),
            (Extent::Call, &[0x2e, 0xe8, 1, 2, 3, 4], Some(6)),
            (Extent::Call, &[0x41, 0xff, 0xd0, 0x0f, 0x1f, 0x00], Some(6)),
            (Extent::Call, &[0x0f, 0x85, 1, 2, 3, 4], Some(6)),
            (Extent::Call, &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x90], Some(5)),
            // the end of what can be read; a prefix that is no LOCK; LOCK
            (Extent::Call, &[0xff, 0xd0, 0x0f], None),
            (Extent::Lock, &[0x48, 0xff], None),
            (Extent::Lock, &[0xf0, 0x48], Some(1)),
        ];
        for (extent, code, expected) in table {
            assert_eq!(length(extent, code), expected, "{extent:?} {code:x?}");
        }
    }

    fn table(bytes: &[u8]) -> Table<'_> {
        Table { name: "x", at: Gva(0x1000), bytes }
    }

    #[test]
    fn zeros_behind_a_table_are_no_entries() {
        let len = |bytes: &[u8]| table(bytes).trimmed(SiteKind::Paravirt, None).bytes.len();
        let mut bytes = vec![0; 40];
        assert_eq!(len(&bytes), 0);
        bytes[17] = 1;
        assert_eq!(len(&bytes), 32);
        // Half an entry at the end is none.
        bytes[39] = 1;
        assert_eq!(len(&bytes), 32);
        let places = table(&bytes[16..36]).trimmed(SiteKind::Return, None).places(SiteKind::Return, None);
        let starts: Vec<Gva> = places.unwrap_or_default().iter().map(|place| place.start).collect();
        assert_eq!(starts, [Gva(0x1100)]);
    }
}
