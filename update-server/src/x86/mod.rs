//! Code of the processor: jumps that are written, and branches that are looked for.

pub mod branches;
pub mod jump;
pub mod stub;

/// INT3 (Intel SDM vol. 2A, INT3). It stands on an instruction that has a probe, or is being rewritten by the kernel
/// (`arch/x86/kernel/alternative.c`, `text_poke_bp_batch`), and between functions.
pub(crate) const INT3: u8 = 0xcc;

/// NOP of one byte (Intel SDM vol. 2B, NOP).
pub(crate) const NOP: u8 = 0x90;
