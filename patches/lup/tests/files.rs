//! Whole `.lup` files: what was packed is what is read, and whatever has been changed since is noticed.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod small_module;

use std::cmp::Ordering;
use std::path::Path;

use lucos_lup::container::ContainerError;
use lucos_lup::signature::{SignatureError, VerifyError};
use lucos_lup::{Container, Manifest, Patch, PublicKey, Signature};
use minisign::KeyPair;
use small_module::{manifest, module};

struct Key {
    pair: KeyPair,
    public: PublicKey,
}

impl Key {
    fn new() -> Self {
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let public = PublicKey::read(pair.pk.to_box().unwrap().to_string().as_bytes()).unwrap();
        Self { pair, public }
    }

    fn sign(&self, body: &[u8]) -> Signature {
        let signature =
            minisign::sign(None, &self.pair.sk, body, Some("timestamp:1\tfile:a.lup"), None).unwrap();
        Signature::read(signature.to_string().as_bytes()).unwrap()
    }

    fn signed(&self, body: &[u8]) -> Vec<u8> {
        Container::read(body).unwrap().signed(&self.sign(body))
    }
}

fn packed() -> Vec<u8> {
    Patch::pack(&manifest(), &module()).unwrap()
}

#[test]
fn what_was_packed_is_what_is_read() {
    let key = Key::new();
    let body = packed();
    for file in [body.clone(), key.signed(&body)] {
        let container = Container::read(&file).unwrap();
        assert_eq!((container.body(), container.module()), (body.as_slice(), module().as_slice()));
        let patch = Patch::read(&container).unwrap();
        assert_eq!(patch.manifest, manifest());
        assert_eq!(patch.module.name(), "lup_ipc");
        assert_eq!(Patch::pack(&patch.manifest, container.module()), Ok(body.clone()));
    }
}

#[test]
fn only_a_trusted_key_counts() {
    let (key, other) = (Key::new(), Key::new());
    let body = packed();
    let file = key.signed(&body);
    let container = Container::read(&file).unwrap();
    let (mine, both) = ([key.public.clone()], [other.public.clone(), key.public.clone()]);
    assert_eq!(container.verify(&mine), Ok(&mine[0]));
    assert_eq!(container.verify(&both), Ok(&both[1]));
    let unknown = VerifyError::UnknownKey { found: key.public.id(), known: other.public.id().to_string() };
    assert_eq!(container.verify(&[other.public]), Err(unknown));
    assert_eq!(Container::read(&body).unwrap().verify(&mine), Err(VerifyError::Unsigned));
}

#[test]
fn a_key_with_a_trusted_keys_number_is_not_that_key() {
    let (key, other) = (Key::new(), Key::new());
    let mut forged = other.pair.pk.to_bytes();
    forged[2..10].copy_from_slice(key.pair.pk.keynum());
    let forged = minisign::PublicKey::from_bytes(&forged).unwrap().to_box().unwrap().to_string();
    let forged = PublicKey::read(forged.as_bytes()).unwrap();
    let file = key.signed(&packed());
    let container = Container::read(&file).unwrap();
    assert_eq!(forged.id(), key.public.id());
    let wrong = VerifyError::Wrong { key: key.public.id() };
    assert_eq!(container.verify(std::slice::from_ref(&forged)), Err(wrong));
    let both = [forged, key.public];
    assert_eq!(container.verify(&both), Ok(&both[1]));
}

#[test]
fn a_signature_of_another_patch_does_not_count() {
    let key = Key::new();
    let mut other = manifest();
    other.policy.tombstones = false;
    let other = Patch::pack(&other, &module()).unwrap();
    let file = Container::read(&packed()).unwrap().signed(&key.sign(&other));
    let wrong = VerifyError::Wrong { key: key.public.id() };
    assert_eq!(Container::read(&file).unwrap().verify(std::slice::from_ref(&key.public)), Err(wrong));
}

#[test]
fn each_truncation_is_noticed() {
    let key = Key::new();
    let body = packed();
    let file = key.signed(&body);
    for len in 0..file.len() {
        let container = Container::read(&file[..len]);
        match len.cmp(&body.len()) {
            Ordering::Less => {
                let truncated = matches!(container, Err(ContainerError::Truncated { end, .. }) if end > len);
                assert!(truncated, "{len}: {container:?}");
            }
            // A patch without its signature is whole, and is not signed.
            Ordering::Equal => assert_eq!(container.unwrap().verify(&[]), Err(VerifyError::Unsigned)),
            Ordering::Greater => {
                let trailer =
                    matches!(container, Err(ContainerError::Trailer { at, .. }) if at == body.len());
                assert!(trailer, "{len}: {container:?}");
            }
        }
    }
}

#[test]
fn each_changed_bit_is_noticed() {
    let key = Key::new();
    let file = key.signed(&packed());
    let keys = [key.public];
    assert!(Container::read(&file).unwrap().verify(&keys).is_ok());
    let mut changed = file.clone();
    for at in 0..file.len() {
        for bit in 0..8 {
            changed[at] ^= 1 << bit;
            let taken = Container::read(&changed).is_ok_and(|container| container.verify(&keys).is_ok());
            assert!(!taken, "bit {bit} of byte {at:#x}");
            changed[at] ^= 1 << bit;
        }
    }
}

#[test]
fn nothing_may_follow_the_signature_or_stand_before_it() {
    let key = Key::new();
    let body = packed();
    let signature = key.sign(&body);
    let text = signature.text().as_bytes();
    for trailer in [[text, b"\n"].concat(), [text, text].concat(), [b"\0", text].concat(), b"\0".to_vec()] {
        let file = [body.as_slice(), &trailer].concat();
        assert!(matches!(Container::read(&file), Err(ContainerError::Trailer { .. })));
    }
}

#[test]
fn manifest_and_module_must_fit_when_packed_and_when_read() {
    let mut other = manifest();
    other.module.name = "lup_other".into();
    let error = Patch::pack(&other, &module()).unwrap_err();
    assert!(error.to_string().contains("\"lup_other\""), "{error}");
    let file = lucos_lup::container::write(&other.to_json().unwrap(), &module()).unwrap();
    assert_eq!(Patch::read(&Container::read(&file).unwrap()).unwrap_err(), error);
}

/// A seed that is not read as what it was made for leads the fuzzer nowhere.
#[test]
fn the_seeds_of_the_fuzz_targets_are_what_they_are_called() {
    let seed = |name: &str| {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
        std::fs::read(seeds.join(name)).unwrap()
    };
    let key = PublicKey::read(&seed("signature/public")).unwrap();
    let (unsigned, signed) = (seed("lup/unsigned"), seed("lup/signed"));
    let container = Container::read(&signed).unwrap();
    assert!(container.verify(std::slice::from_ref(&key)).is_ok());
    assert_eq!(container.body(), unsigned);
    assert_eq!(Patch::read(&container).unwrap().manifest, manifest());
    assert_eq!(Manifest::read(&seed("manifest/whole")), Ok(manifest()));
    assert!(Manifest::read(&seed("manifest/shortest")).is_ok());
    assert_eq!(seed("module/small"), module());
    assert_eq!(
        Signature::read(&seed("signature/hashed")).unwrap().verify(&unsigned, &[key]).map(drop),
        Ok(())
    );
    assert_eq!(Signature::read(&seed("signature/not-hashed")), Err(SignatureError::NotHashed));
}
