//! The `.lup` file: a live patch for a Linux kernel, with its manifest, its module and its signature.
//!
//! This crate has no I/O: bytes come in, types come out. Whatever the bytes are, it does not panic, and takes time and memory
//! that the file's length bounds. `docs/patch-format.md` has the format.
//!
//! | module | noun |
//! |---|---|
//! | [`container`] | the file: its header, parts and signature |
//! | [`signature`] | signatures and public keys, those of minisign |
//! | [`manifest`] | what a patch changes, for which kernels, and how it is applied |
//! | [`module`] | the kernel module with the new code, and stock modules that it replaces functions of |
//! | [`patch`] | manifest and module, which fit each other |
//! | [`limits`] | every bound on a patch, with its reason |
//!
//! Who takes a patch from somebody else looks at the signature before anything else is read:
//!
//! ```
//! use lucos_lup::{Container, Patch, PublicKey};
//!
//! fn admit(file: &[u8], trusted: &[PublicKey]) -> Result<String, Box<dyn std::error::Error>> {
//!     let container = Container::read(file)?;
//!     let key = container.verify(trusted)?;
//!     let patch = Patch::read(&container)?;
//!     Ok(format!("{} by {}", patch.manifest.name, key.id()))
//! }
//!
//! let refused = admit(b"\x7fELF", &[]).unwrap_err();
//! assert!(refused.to_string().starts_with("this is no .lup file"));
//! ```
#![forbid(unsafe_code)]

pub mod container;
pub mod limits;
pub mod manifest;
pub mod module;
pub mod patch;
pub mod signature;

pub use container::Container;
pub use manifest::Manifest;
pub use module::Module;
pub use patch::{Patch, PatchError};
pub use signature::{PublicKey, Signature};
