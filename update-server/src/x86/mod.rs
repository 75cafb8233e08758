//! Code of the processor: jumps that are written, and branches that are looked for.

pub mod branches;
pub mod jump;
