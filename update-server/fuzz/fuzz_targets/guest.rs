//! A guest that lies: its tables, lists, modules and stacks are the input's, and change while they are looked at.
//!
//! It claims to run the kernel `vmlinux-6.1-cloud` of the folder that `LUCOS_IMAGES` names.
#![no_main]

use std::cell::Cell;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use update_server::addr::Gpa;
use update_server::census::Survey;
use update_server::guest::{Memory, NoRam, Paused, Registers, Vcpu};
use update_server::image::Image;
use update_server::kernel::locate::Place;
use update_server::kernel::model::Model;
use update_server::kernel::paging::PageTables;
use update_server::kernel::running::Running;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let folder = std::env::var("LUCOS_IMAGES").expect("LUCOS_IMAGES names the folder with the kernel");
    let file = std::fs::read(format!("{folder}/vmlinux-6.1-cloud")).expect("the kernel can be read");
    Model::new(Image::read(&file).expect("it is a kernel")).expect("it is complete")
});

/// Two page tables lead any address to a gigabyte from here on.
const DATA: u64 = 1 << 40;

struct Guest<'a> {
    /// What is everywhere, again and again.
    bytes: &'a [u8],
    /// After how many readings what is read is another word; 0 is never.
    pace: u64,
    read: Cell<u64>,
    still: Cell<bool>,
    vcpus: Vec<Vcpu>,
}

impl Memory for Guest<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        if at.0 < DATA {
            let entry: u64 = if at.0 < 0x1000 { 0x1001 } else { DATA | 0x81 };
            let len = into.len();
            into.copy_from_slice(&entry.to_le_bytes()[..len]);
            return Ok(());
        }
        self.read.set(self.read.get() + 1);
        let moved = if self.still.get() || self.pace == 0 { 0 } else { self.read.get() / self.pace };
        let len = self.bytes.len() as u64;
        let mut from = usize::try_from((at.0 - DATA).wrapping_add(moved * 8) % len).expect("it is an index");
        let mut rest = into;
        while !rest.is_empty() {
            let here = rest.len().min(self.bytes.len() - from);
            let (part, behind) = rest.split_at_mut(here);
            part.copy_from_slice(&self.bytes[from..from + here]);
            (rest, from) = (behind, 0);
        }
        Ok(())
    }
}

impl Paused for Guest<'_> {
    fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[pace, low, high], bytes)) = bytes.split_first_chunk::<3>() else { return };
    if bytes.len() < 64 {
        return;
    }
    let at = 0xffff_ffff_8100_0000 + (u64::from(low) | u64::from(high) << 8) * 16;
    let registers =
        Registers { rsp: 0xffff_c900_0000_3f00, rbp: 0xffff_c900_0000_3f40, ..Registers::default() };
    let vcpu = Vcpu {
        started: true,
        rip: at,
        registers,
        cr0: 1 << 31,
        lstar: 0xffff_ffff_81c0_0080,
        gs_base: 0xffff_8880_0000_0000,
        gdt_base: 0xffff_8880_0000_1000,
        idt_base: 0xffff_fe00_0000_0000,
        ..Vcpu::default()
    };
    let guest =
        Guest { bytes, pace: pace.into(), read: Cell::new(0), still: Cell::new(false), vcpus: vec![vcpu] };
    let place = Place { distance: 0, tables: PageTables::new(0, 0) };
    let mut survey = Survey::default();
    let _ = survey.prepare(&Running::at(&MODEL, &guest, place));
    guest.still.set(true);
    let kernel = Running::at(&MODEL, &guest, place);
    if survey.settle(&kernel, &guest).is_ok() {
        let _ = survey.verify(&kernel, &guest);
        let census = survey.census();
        assert!(census.stacks.iter().all(|stack| stack.frames.len() < 4096));
    }
});
