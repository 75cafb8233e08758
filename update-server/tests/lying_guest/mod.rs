//! A guest with the same few bytes everywhere, so that nothing is ever out of reach.

use std::cell::Cell;

use update_server::addr::Gpa;
use update_server::guest::{Memory, NoRam, Paused, Registers, Vcpu};

/// Two page tables, of which every entry is alike, lead from any address to a gigabyte from here on.
const DATA: u64 = 1 << 40;
/// Where 6.1 cloud's text is linked for, and about where SYSCALL enters it.
const TEXT: u64 = 0xffff_ffff_8100_0000;
const ENTRY: u64 = TEXT + 0xc0_0080;

/// It claims to run whatever kernel it is taken for.
#[derive(Debug)]
pub(crate) struct LyingGuest {
    bytes: Vec<u8>,
    vcpus: Vec<Vcpu>,
    /// After how many readings another vCPU has rewritten everything; 0 is never.
    pub(crate) pace: Cell<u64>,
    readings: Cell<u64>,
}

impl LyingGuest {
    /// One that has `bytes` everywhere, and a vCPU at each of `places` in its text, none of them with a table of interrupts.
    pub(crate) fn new(bytes: Vec<u8>, places: impl IntoIterator<Item = u64>) -> Self {
        let registers =
            Registers { rsp: 0xffff_c900_0000_3f00, rbp: 0xffff_c900_0000_3f40, ..Registers::default() };
        let vcpu = |(id, place): (u32, u64)| Vcpu {
            id,
            started: true,
            rip: TEXT + place,
            registers,
            cr0: 1 << 31,
            lstar: ENTRY,
            gs_base: 0xffff_8880_0000_0000,
            gdt_base: 0xffff_8880_0000_1000,
            ..Vcpu::default()
        };
        let vcpus = (0..).zip(places).map(vcpu).collect();
        Self { bytes, vcpus, pace: Cell::new(0), readings: Cell::new(0) }
    }
}

impl Memory for LyingGuest {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        if at.0 < DATA {
            // Entries that were read one after another may be read again at once.
            for (place, byte) in (at.0..).zip(into) {
                let entry: u64 = if place < 0x1000 { 0x1001 } else { DATA | 0x81 };
                *byte = entry.to_le_bytes()[(place % 8) as usize];
            }
            return Ok(());
        }
        self.readings.set(self.readings.get() + 1);
        // What was at one place is at another then.
        let moved = self.readings.get().checked_div(self.pace.get()).unwrap_or(0) * 8;
        let place = (at.0 - DATA).wrapping_add(moved) % self.bytes.len() as u64;
        let mut from = usize::try_from(place).expect("it is less than a length");
        let mut rest = into;
        while !rest.is_empty() {
            let here = rest.len().min(self.bytes.len() - from);
            let (now, later) = rest.split_at_mut(here);
            now.copy_from_slice(&self.bytes[from..from + here]);
            (rest, from) = (later, 0);
        }
        Ok(())
    }
}

impl Paused for LyingGuest {
    fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), NoRam> {
        // It says what it likes.
        Ok(())
    }
}
