//! Trampolines that ftrace makes for its users: copies of its own two, each for one user (`arch/x86/kernel/ftrace.c`).

use std::ops::Range;

use super::list::{Cut, Listed};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Btf;
use crate::limits::TRAMPOLINES;

/// Where ftrace keeps them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrampolineLayout {
    list: Gva,
    end: Gva,
    next: u64,
    flags: u64,
    start: u64,
    bytes: u64,
    /// The flag of those that save all registers.
    all_registers: u64,
    /// What the two kinds are copies of: with all registers, and without.
    full: Gva,
    plain: Gva,
}

impl TrampolineLayout {
    pub(super) fn of(types: &Btf, one: impl Fn(&str) -> Option<Gva>) -> Option<Self> {
        let offset = |member: &str| types.offset("ftrace_ops", member).ok();
        Some(Self {
            list: one("ftrace_ops_list")?,
            end: one("ftrace_list_end")?,
            next: offset("next")?,
            flags: offset("flags")?,
            start: offset("trampoline")?,
            bytes: offset("trampoline_size")?,
            all_registers: u64::try_from(types.enumerator("FTRACE_OPS_FL_SAVE_REGS").ok()?).ok()?,
            full: one("ftrace_regs_caller")?,
            plain: one("ftrace_caller")?,
        })
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trampoline {
    /// Its code.
    pub text: Range<Gva>,
    /// What it is a copy of, at the address that was linked for: byte by byte, as far as frames go.
    pub copy_of: Gva,
}

/// Every trampoline that is in use.
pub fn trampolines(kernel: &Running<'_, impl Memory>) -> Result<Listed<Trampoline>, ReadError> {
    let Some(layout) = kernel.model().trampolines else { return Ok(Listed::nothing()) };
    let space = kernel.space();
    let mut found = Vec::new();
    let mut at = space.pointer(kernel.now(layout.list))?;
    while at.0 != 0 && at != kernel.now(layout.end) {
        if found.len() >= TRAMPOLINES {
            let cut = Some(Cut { what: "users of ftrace", limit: TRAMPOLINES });
            return Ok(Listed { entries: found, cut });
        }
        let start = space.pointer(at.wrapping_add(layout.start))?;
        let bytes = space.u64(at.wrapping_add(layout.bytes))?;
        let full = space.u64(at.wrapping_add(layout.flags))? & layout.all_registers != 0;
        let copy_of = if full { layout.full } else { layout.plain };
        found.push(Trampoline { text: start..start.wrapping_add(bytes), copy_of });
        at = space.pointer(at.wrapping_add(layout.next))?;
    }
    Ok(Listed { entries: found, cut: None })
}
