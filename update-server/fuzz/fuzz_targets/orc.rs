//! Unwind tables, of the kernel and of its modules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::addr::Gva;

fuzz_target!(|bytes: &[u8]| {
    for new in [false, true] {
        let Some(table) = update_server::fuzzing::orc(bytes, new) else { continue };
        let (first, last) = table.range().expect("no table is empty");
        assert!(first <= last);
        assert!(first.0 == 0 || table.entry(Gva(first.0 - 1)).is_none());
        assert!(table.entry(first).is_some() && table.entry(last).is_some());
        assert_eq!(table.entry(Gva(u64::MAX)), table.entry(last));
    }
});
