//! A file that is said to be a kernel module.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lucos_lup::Module;
use lucos_lup::module::StockModule;

fuzz_target!(|bytes: &[u8]| {
    let Ok(module) = Module::read(bytes) else { return };
    assert!(!module.name().is_empty() && module.vermagic().starts_with(module.release()));
    assert!(module.sections() * 64 <= bytes.len());
    for name in module.undefined() {
        assert!(!name.is_empty() && module.function_size(name).is_err());
    }
    // What the seeds have.
    if let Ok(size) = module.function_size("lucos_ipc_addid") {
        assert!(size != 0 && size <= bytes.len() as u64);
    }
    let Ok(stock) = StockModule::read(bytes) else { return };
    for (name, _) in stock.symbols().take(16) {
        let Ok(original) = stock.function(name, 0) else { continue };
        let len = original.code.as_bytes().len() as u64;
        assert!(original.holes.iter().all(|hole| u64::from(hole.offset) + u64::from(hole.len) <= len));
    }
});
