//! Code of a module or of BPF, of which every path is followed.
#![no_main]

use std::cell::Cell;

use libfuzzer_sys::fuzz_target;
use update_server::census::flow;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, code)) = bytes.split_first() else { return };
    for start in [0xffff_ffff_c000_0000, u64::MAX - 16, 0] {
        let budget = Cell::new(1 << 16);
        let states = flow::states(code, start, u64::wrapping_add(start, first.into()), &budget);
        assert!(states.len() <= 1024);
    }
});
