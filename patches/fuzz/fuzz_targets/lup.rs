//! A file that is said to be a patch.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lucos_lup::{Container, Patch, PublicKey, container};

/// The key that has signed the seeds, and one with the number 0, which anybody may name.
static KEYS: LazyLock<[PublicKey; 2]> = LazyLock::new(|| {
    let nobody = "untrusted comment: \nRWQAAAAAAAAAAAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n";
    let signer = include_bytes!("../seeds/signature/public");
    [PublicKey::read(signer).expect("a key"), PublicKey::read(nobody.as_bytes()).expect("a key")]
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(container) = Container::read(bytes) else { return };
    // There is one file only for what is in it.
    let body = container::write(container.manifest(), container.module())
        .expect("its parts are within their limits");
    let signature = container.signature().map(|signature| signature.text().as_bytes()).unwrap_or_default();
    assert_eq!([&*body, signature].concat(), bytes);
    assert_eq!(container.body(), body);
    if let Ok(key) = container.verify(&*KEYS) {
        assert_eq!(Some(key.id()), container.signature().map(|signature| signature.key()));
    }
    if let Ok(patch) = Patch::read(&container) {
        let again = Patch::pack(&patch.manifest, container.module()).expect("it was read");
        let again = Container::read(&again).expect("it was packed");
        assert_eq!(Patch::read(&again).expect("it was packed").manifest, patch.manifest);
    }
});
