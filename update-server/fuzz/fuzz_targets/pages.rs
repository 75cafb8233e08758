//! Page tables of a guest's making, of four and of five levels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::addr::{Gpa, Gva};
use update_server::guest::{Memory, NoRam};
use update_server::kernel::paging::PageTables;
use update_server::kernel::space::AddressSpace;

struct Ram<'a>(&'a [u8]);

impl Memory for Ram<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        let outside = NoRam { at, len: into.len() };
        let from = usize::try_from(at.0).map_err(|_| outside)?;
        let bytes = from.checked_add(into.len()).and_then(|end| self.0.get(from..end)).ok_or(outside)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((addresses, ram)) = bytes.split_at_checked(64) else { return };
    let ram = Ram(ram);
    for cr4 in [0, 1 << 12] {
        let tables = PageTables::new(0, cr4);
        let space = AddressSpace::new(&ram, tables);
        // The second time it is remembered.
        for address in addresses.chunks_exact(8).chain(addresses.chunks_exact(8)) {
            let at = Gva(u64::from_le_bytes(address.try_into().expect("chunks of eight")));
            assert_eq!(space.physical(at), tables.translate(&ram, at));
            let mut read = [0; 24];
            if space.read(at, &mut read).is_ok() {
                let byte = usize::try_from(space.physical(at).expect("it was read").0).expect("it is in RAM");
                assert_eq!(read[0], ram.0[byte]);
            }
        }
    }
});
