//! The place for redirected returns in a module: what the host finds there, and what it makes of it in a guest.
//!
//! ```text
//! .text.lucos_stubs:  stub 0 | stub 1 | ... | stub 255 | ud2
//!
//! in the file:  90                nop
//!               cc cc cc cc cc cc cc
//! in use:       90                nop
//!               e6 e5             out 0xe5, al
//!               e9 xx xx xx xx    jmp to where the frame returns to
//! ```
//!
//! The address that a return is given is that behind the NOP: whoever walks the stack looks one byte before it.

/// The section, which is all code and has nothing else in it.
pub const SECTION: &str = ".text.lucos_stubs";

/// How many there are: one for each frame whose return is redirected.
pub const COUNT: usize = 256;

/// Bytes of each. Sections of code are aligned to as much.
pub const BYTES: usize = 8;

/// What each is in the file. Nobody comes there; who did would end in a trap (Intel SDM vol. 2A, INT3).
pub const EMPTY: [u8; BYTES] = [0x90, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];

/// What the entry of the unwind table that a stub has in the file says of RSP in the caller: so many bytes above RSP. Stubs beside
/// each other have different ones, as equal ones would be made into one entry (`tools/objtool/orc_gen.c`).
#[must_use]
pub fn placeholder(index: usize) -> i16 {
    if index.is_multiple_of(2) { 8 } else { 16 }
}
