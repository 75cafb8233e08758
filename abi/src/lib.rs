//! The hypercalls by which a guest and its VMM speak with each other.
//!
//! A call is `in eax, dx` with [`PORT`] in `dx`, 4 bytes wide, in 64-bit mode: an exit like any other, from ring 0, and
//! from ring 3 after ioperm(2).
//!
//! | register | holds |
//! |---|---|
//! | `rbx` | the number of the [`Call`] in the low half, [`VERSION`] in the high half |
//! | `rcx` | the virtual address of a buffer |
//! | `rsi` | its length in bytes, at most [`CALL_BYTES`] |
//! | `rdi` | what the call says of it, else 0 |
//! | `eax` | afterwards: a count from 0 on, or the negative of an [`ErrorCode`] |
//!
//! No other register and no flag changes. The host finds the buffer by the page tables of the processor that calls, with the
//! rights of the ring that calls: present pages, and writable ones where the host writes. It looks the pages up again
//! when it has copied; a buffer whose pages are moved meanwhile is [`ErrorCode::Again`]. So a buffer is locked in memory and
//! written to before the call, and a caller tries again a few times.
//!
//! Nothing here is trusted by the host: whoever may use the port may call, and every field may be wrong.
//!
//! # Versions
//!
//! The version covers all of this: numbers, structures, their meaning. A host refuses another one than its own by
//! [`ErrorCode::BadVersion`] before it looks at anything but the caller's mode. What only adds (a call, an error code) keeps the version; a
//! structure that changes gets a new one.
//!
//! `abi/include/lucos_abi.h` says the same in C; a test compares the two.
#![no_std]
#![forbid(unsafe_code)]

mod call;
mod code;
mod hello;
mod report;
mod request;
mod sections;
mod text;

pub use call::{CALL_BYTES, Call, PORT, PORTS, Place, UPLOAD_BYTES, VERSION, WAKE};
pub use code::{ErrorCode, answer, eax};
pub use hello::{Hello, Known, Lockdown};
pub use report::{ERRNO_MAX, Report};
pub use request::{MODULE_BYTES, Request, RequestKind};
pub use sections::{Malformed, Section, line, sections};
pub use text::{MODULE_NAME_BYTES, PATCH_NAME_BYTES, module_name, padded, patch_name, text};
