//! The list of what KASLR changes, and what it changes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::addr::Gva;

fuzz_target!(|bytes: &[u8]| {
    let (behind, text) = bytes.split_at(bytes.len() / 2);
    let relocations = update_server::fuzzing::relocations(behind);
    for start in [0xffff_ffff_8100_0000, 0, u64::MAX - 8] {
        let mut moved = text.to_vec();
        // By nothing it stays as it is; by a multiple of 64 KiB all lowest 16 bits do, where no two numbers overlap.
        relocations.apply(Gva(start), &mut moved, 0);
        assert_eq!(moved, text);
        relocations.apply(Gva(start), &mut moved, 0x0120_0000);
        let changed = moved.iter().zip(text).filter(|(new, old)| new != old).count();
        assert!(changed <= 8 * relocations.len(), "{changed} bytes by {} numbers", relocations.len());
    }
});
