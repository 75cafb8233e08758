//! Bytes that are said to be a manifest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lucos_lup::Manifest;

fuzz_target!(|bytes: &[u8]| {
    match Manifest::read(bytes) {
        Ok(manifest) => {
            let json = manifest.to_json().expect("it was read");
            assert_eq!(Manifest::read(&json), Ok(manifest));
        }
        // What is wrong is told in a few lines, whatever is in the manifest.
        Err(error) => assert!(error.to_string().len() < 16 << 10),
    }
});
