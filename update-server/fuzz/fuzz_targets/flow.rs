//! Code of a module or of BPF, of which every path is followed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::census::flow;
use update_server::steps::Steps;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, code)) = bytes.split_first() else { return };
    for start in [0xffff_ffff_c000_0000, u64::MAX - 16, 0] {
        let steps = Steps::new(1 << 16);
        let states = flow::states(code, start, u64::wrapping_add(start, first.into()), &steps);
        assert!(states.len() <= 1024);
    }
});
