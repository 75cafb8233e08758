//! What is said of a frame: by the kernel's unwind table, by a module's as far as its code agrees, and by the code itself where
//! there is no table or the table knows of another code.

use std::cell::RefCell;
use std::collections::HashMap;

use super::code::{Code, CodeKind};
use super::doubt::Doubt;
use super::flow;
use super::patched;
use super::state::{Saved, State};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Base, FrameKind, OrcEntry};
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::steps::Steps;
use crate::x86::jump::{self, JUMP_BYTES};

/// Bytes of a direct call, as of a jump.
const CALL_BYTES: u64 = JUMP_BYTES as u64;

/// How to walk on from a function's first instruction.
const AT_ENTRY: OrcEntry = OrcEntry {
    sp: Base::Sp,
    sp_offset: 8,
    bp: Base::Undefined,
    bp_offset: 0,
    kind: FrameKind::Call,
    signal: false,
};

/// How to walk on from registers that have just been saved.
const SAVED: OrcEntry = OrcEntry { sp_offset: 0, kind: FrameKind::Registers, signal: true, ..AT_ENTRY };

/// Says how to walk on.
#[derive(Debug)]
pub(super) struct Said<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    code: &'a Code<'a, 'g, M>,
    /// What was found out about code that is not the kernel's own.
    known: RefCell<HashMap<Gva, OrcEntry>>,
}

impl<'a, 'g, M: Memory> Said<'a, 'g, M> {
    pub(super) fn new(kernel: &'a Running<'g, M>, code: &'a Code<'a, 'g, M>) -> Self {
        Self { kernel, code, known: RefCell::default() }
    }

    /// How to walk on from `at`. Where a vCPU stands in code that was patched, the table alone does not tell.
    pub(super) fn orc(&self, state: &State, at: Gva, steps: &Steps) -> Result<OrcEntry, Doubt> {
        let mut found = self.entry(state.ip, at, steps)?;
        if let Some(callee) = state.callee
            && found.kind == FrameKind::Exception
            && self.has_saved(state.ip, callee)
        {
            return Ok(SAVED);
        }
        if !matches!(state.saved, Saved::Vcpu(_) | Saved::Stack(_)) || !state.signal {
            return Ok(found);
        }
        if let Some((start, len)) = self.code.patched(at) {
            if self.registers_are_saved(start, at) {
                return Ok(SAVED);
            }
            let mut code = vec![0; len];
            let base = if found.kind == FrameKind::Undefined {
                // At its start a thunk's stack is as at that of a function.
                Some(AT_ENTRY)
            } else {
                self.code
                    .orc(start, steps)
                    .ok()
                    .filter(|orc| orc.kind == FrameKind::Call && orc.sp == Base::Sp)
            };
            if let Some(base) = base
                && self.kernel.space().read(start, &mut code).is_ok()
                && let Some(depth) = patched::depth(&code, start.0, at.0)
                && let Ok(offset) = i16::try_from(i64::from(base.sp_offset) + depth)
            {
                found = OrcEntry { sp_offset: offset, ..base };
            }
        }
        Ok(found)
    }

    /// What is said of the frame at `at`, where the code at `ip` is: by the kernel's table, or by what is followed of code
    /// whose table may not be believed or that has none.
    fn entry(&self, ip: Gva, at: Gva, steps: &Steps) -> Result<OrcEntry, Doubt> {
        if let Some(known) = self.known.borrow().get(&at) {
            return Ok(*known);
        }
        let no_table = |why| Doubt::NoTable { at: ip, why };
        let kind = self.code.kind(at);
        let found = self.code.orc(at, steps).map_err(no_table)?;
        match kind {
            CodeKind::Kernel => return Ok(found),
            CodeKind::Module(module) => self.check_module(module, at, found, steps)?,
            _ => {}
        }
        // Many sleep in the same places. As each one takes a step, these are not many more.
        self.known.borrow_mut().insert(at, found);
        Ok(found)
    }

    /// Holds the entry of a module's table, which is in memory that the guest can write to, against the module's code.
    fn check_module(&self, module: &Module, at: Gva, orc: OrcEntry, steps: &Steps) -> Result<(), Doubt> {
        let contradicted = || Doubt::Contradicted { module: module.name.clone(), at };
        if orc.kind == FrameKind::End {
            return Err(contradicted());
        }
        // The second halves of functions have no entry to begin at.
        let Some((symbol, next)) =
            module.symbols.function(at).filter(|(symbol, _)| !symbol.name.contains(".cold"))
        else {
            return Ok(());
        };
        let text = if module.text().contains(&at) { module.text() } else { module.init_text() };
        if !text.contains(&symbol.address) {
            return Ok(());
        }
        let end = next.unwrap_or(text.end).min(text.end);
        let Ok(code) = flow::code(self.kernel.space(), symbol.address, end, steps) else {
            return Ok(());
        };
        let states = flow::states(&code, symbol.address.0, at.0, steps);
        let agrees = states.is_empty() || states.iter().any(|state| state.agrees(orc));
        if agrees { Ok(()) } else { Err(contradicted()) }
    }

    /// Whether `at` is behind the call that has just saved an interruption's registers, with the next instruction moving to
    /// the stack of its task. The table knows only what is before and behind both, which are one alternative
    /// (`idtentry_body` in `arch/x86/entry/entry_64.S`).
    fn registers_are_saved(&self, start: Gva, at: Gva) -> bool {
        at == start.wrapping_add(CALL_BYTES) && self.saves_registers(at).is_some()
    }

    /// Whether what was called from before `ip`, and is in `callee` now, has saved an interruption's registers. It ends in other
    /// functions, to which it jumps, but does not go there before it has saved them (`error_entry` and `paranoid_entry` in
    /// `arch/x86/entry/entry_64.S`: `sync_regs`, the return thunks).
    fn has_saved(&self, ip: Gva, callee: Gva) -> bool {
        let Some(saving) = self.saves_registers(ip) else { return false };
        let symbols = self.kernel.model().image().symbols();
        symbols.function(self.kernel.linked(callee)).is_some_and(|(symbol, _)| symbol.address != saving)
    }

    /// What the call before `ip` calls, if that saves registers.
    fn saves_registers(&self, ip: Gva) -> Option<Gva> {
        let start = Gva(ip.0.wrapping_sub(CALL_BYTES));
        let target = jump::call_target(start, self.kernel.space().array(start).ok()?)?;
        let target = self.kernel.linked(target);
        self.kernel.model().symbols.saving.into_iter().flatten().find(|saving| *saving == target)
    }
}
