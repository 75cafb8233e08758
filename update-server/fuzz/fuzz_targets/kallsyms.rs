//! Read-only data that has, or has not, the tables of symbols in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::addr::Gva;

fuzz_target!(|bytes: &[u8]| {
    let Some(symbols) = update_server::fuzzing::kallsyms(bytes) else { return };
    let mut last = Gva(0);
    for symbol in symbols.iter() {
        assert!(symbol.address >= last, "not by address");
        last = symbol.address;
        assert!(symbols.named(symbol.name).any(|same| same.address == symbol.address));
        let (found, offset) = symbols.containing(symbol.address).expect("it is in itself");
        assert_eq!((found.address, offset), (symbol.address, 0));
    }
});
