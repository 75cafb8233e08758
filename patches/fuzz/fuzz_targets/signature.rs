//! Text that is said to be a signature, or a public key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lucos_lup::{PublicKey, Signature};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(signature) = Signature::read(bytes) {
        assert_eq!(Signature::read(signature.text().as_bytes()).as_ref(), Ok(&signature));
        assert!(!signature.comment().contains(['\n', '\r', '\x1b']));
    }
    if let Ok(key) = PublicKey::read(bytes) {
        assert_eq!(key.id().to_string().len(), 16);
    }
});
