//! The update server: what the host knows of a guest's kernel, and how it looks at it.
//!
//! This crate has no I/O. It knows no KVM, file, socket, thread or clock: the embedder hands it the bytes of the kernel image
//! and lets it read guest memory through the small traits in [`guest`]. [Embedding](#embedding) says what it owes, and when what is
//! called.
//!
//! | module | noun |
//! |---|---|
//! | [`guest`] | the seam: what is asked of the VMM |
//! | [`image`] | the kernel image: symbols, types, unwind tables, and every place of its text that may change |
//! | [`kernel`] | the running kernel: where it is, its memory, its modules |
//! | [`census`] | one look at every kernel stack |
//! | [`text_check`] | the kernel's text, held against the image |
//! | [`watch`] | the seam for pages whose accesses are trapped |
//! | [`addr`] | guest addresses, of which there are two kinds that must not be mixed |
//! | [`limits`] | every bound on what an image or a guest can make us do, with its reason |
//! | [`server`] | every patch of a guest: applied, rolled back |
//! | [`phases`] | what that takes, in its order |
//! | [`journal`] | changes to memory, all or none |
//! | `reads` | what was read of a guest that ran, to see in a pause whether it is still so |
//! | [`steps`] | how much more of it may be looked at |
//!
#![doc = include_str!("embedding.md")]
#![forbid(unsafe_code)]

pub mod addr;
mod bytes;
pub mod census;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod guest;
pub mod image;
pub mod journal;
pub mod kernel;
pub mod limits;
pub mod phases;
mod reads;
pub mod server;
pub mod steps;
pub mod text_check;
pub mod watch;
pub mod x86;
