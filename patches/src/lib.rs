//! `lucos-patch`: makes `.lup` files, shows what is in them, and signs them.
//!
//! What a `.lup` file is, the crate `lucos-lup` knows, and how the kernel's source becomes a module, `lucos-make`; here are files,
//! keys and the command line. In the order of a patch's life:
//!
//! | module | noun |
//! |---|---|
//! | [`make`] | the patch, made of a fix of the kernel's source |
//! | [`pack`] | the patch, made of a manifest and a module |
//! | [`keygen`] | a pair of keys |
//! | [`sign`] | the signature, made here or by minisign |
//! | [`verify`] | the question who has signed |
//! | [`inspect`] | what is in a patch, for people, for programs, and as files |
//! | [`cli`] | the command line |
//! | [`exit`] | how it ends |
#![forbid(unsafe_code)]

pub mod cli;
pub mod exit;
mod files;
pub mod inspect;
pub mod keygen;
pub mod make;
pub mod pack;
mod secret;
pub mod sign;
mod stock;
pub mod verify;
