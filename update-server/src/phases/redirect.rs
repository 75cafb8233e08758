//! Returns that are redirected: whoever is inside a function on its way out comes through a stub of the patch's module when he leaves
//! it, so that the host knows at once.
//!
//! For each frame three things are written: the stub, its entry of the guest's unwind table, which becomes a copy of that for where the
//! frame returns to, and the return address. What cannot be redirected is watched. A stub that was written stays as it is; it is
//! used again once no stack holds it.

use std::collections::{BTreeMap, HashSet};

use lucos_lup::module::stubs::{BYTES, COUNT, EMPTY, placeholder};

use super::stack_check::{Leave, Presence};
use crate::addr::Gva;
use crate::bytes::i32_at;
use crate::census::{Census, Code, CodeKind, Frame};
use crate::guest::Memory;
use crate::image::{Base, FrameKind, OrcEntry, OrcTable};
use crate::journal::Edit;
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::limits::REDIRECTED;
use crate::text_check::Written;
use crate::x86::stub;

type Entry = [u8; OrcTable::ENTRY];

/// What was made of one stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stub {
    bytes: [u8; BYTES],
    entry: Entry,
    /// Whether the frame has not come through it yet.
    waits: bool,
}

/// The stubs of one patch's module, in one run of the kernel.
#[derive(Debug, Clone, Default)]
pub struct Stubs {
    start: Gva,
    /// Those that were written, by number.
    written: BTreeMap<usize, Stub>,
}

/// What is to be written, and what is then known.
#[derive(Debug, Default)]
pub struct Plan {
    /// The changes to the guest's memory.
    pub edits: Vec<Edit>,
    start: Gva,
    stubs: Vec<(usize, Stub)>,
    /// The stub of each return address.
    slots: BTreeMap<Gva, Gva>,
}

impl Stubs {
    /// How frames of `presence` are redirected, in a guest that stands still, through the stubs that begin at `start`. `census` has
    /// found the frames.
    pub fn plan<M: Memory>(
        &self,
        kernel: &Running<'_, M>,
        census: &Census,
        presence: &Presence,
        start: Gva,
    ) -> Plan {
        let code = Code::new(kernel, &census.loaded);
        let mut plan = Plan { start, ..Plan::default() };
        let CodeKind::Module(module) = code.kind(start) else { return plan };
        // Where none was written yet, no stack can hold one.
        let held = if self.written.is_empty() { HashSet::new() } else { held(census, start) };
        let all_known = presence.doubts.is_empty();
        // One that is waited for is not free even if nobody seems to hold it: he may have come through it just now.
        let is_free = |index: &usize| match self.written.get(index) {
            None => true,
            Some(stub) => !stub.waits && all_known && !held.contains(&at(start, *index)),
        };
        let mut free = (0..COUNT).filter(is_free);
        let leaves = presence.holders.iter().filter_map(|holder| holder.leave);
        let leaves = leaves.filter(|leave| leave.certain && leave.stub.is_none());
        // However many of them cannot be.
        for leave in leaves.take(REDIRECTED) {
            if plan.slots.contains_key(&leave.slot) {
                continue;
            }
            let Some(entry) = entry_of(kernel, &code, leave) else { continue };
            let Some(index) = free.next() else { break };
            // A stub that is not as it was left is not tried again: the next frame has the next one.
            let made = self.written.get(&index);
            let Some((edits, stub)) = redirect(kernel, module, (start, index), made, leave, entry) else {
                continue;
            };
            plan.edits.extend(edits);
            plan.stubs.push((index, stub));
            plan.slots.insert(leave.slot, at(start, index));
        }
        plan
    }

    /// Notes that what was planned is written, and who of `presence` leaves by which stub.
    pub fn take(&mut self, plan: Plan, presence: &mut Presence) {
        if !plan.stubs.is_empty() {
            self.start = plan.start;
        }
        self.written.extend(plan.stubs);
        for leave in presence.holders.iter_mut().filter_map(|holder| holder.leave.as_mut()) {
            if let Some(stub) = plan.slots.get(&leave.slot) {
                leave.stub = Some(*stub);
            }
        }
    }

    /// Notes that a frame has come through the stub at `stub`; whether that was waited for.
    pub fn passed(&mut self, stub: Gva) -> bool {
        let start = self.start;
        let found = self.written.iter_mut().find(|(index, _)| at(start, **index) == stub);
        found.is_some_and(|(_, stub)| std::mem::take(&mut stub.waits))
    }

    /// Every stub that a frame is still to come through.
    pub fn waiting(&self) -> impl Iterator<Item = Gva> {
        let waiting = self.written.iter().filter(|(_, stub)| stub.waits);
        waiting.map(|(index, _)| at(self.start, *index))
    }

    /// What was written into the module's text.
    pub fn text(&self) -> Vec<Written> {
        let text =
            |(index, stub): (&usize, &Stub)| Written { at: at(self.start, *index), bytes: stub.bytes.into() };
        self.written.iter().map(text).collect()
    }
}

/// Where the stub number `index` is.
fn at(start: Gva, index: usize) -> Gva {
    start.wrapping_add((index * BYTES) as u64)
}

/// Those of the stubs that begin at `start` that a stack holds, or that a vCPU is in.
fn held(census: &Census, start: Gva) -> HashSet<Gva> {
    let text = start..at(start, COUNT);
    let places = |frame: &Frame| {
        let within = Gva(frame.address.0 - frame.address.0 % BYTES as u64);
        [frame.stub, Some(within)].into_iter().flatten()
    };
    let frames = census.stacks().flat_map(|stack| &stack.frames);
    frames.flat_map(places).filter(|place| text.contains(place)).collect()
}

/// The entry of the guest's unwind tables for where a frame returns to, if it can be redirected: it returns to code that has a table,
/// and no tracer has its return address.
fn entry_of<M: Memory>(kernel: &Running<'_, M>, code: &Code<'_, '_, M>, leave: Leave) -> Option<Entry> {
    if kernel.space().pointer(leave.slot) != Ok(leave.to) {
        return None;
    }
    let before = Gva(leave.to.0.wrapping_sub(1));
    let own = kernel.model().image().orc();
    let entry = match code.kind(before) {
        CodeKind::Kernel => own.raw(kernel.linked(before))?,
        CodeKind::Module(module) => module.orc.as_ref().ok()?.raw(before)?,
        _ => return None,
    };
    let kind = own.layout().entry(&entry, 0)?.kind;
    matches!(kind, FrameKind::Call | FrameKind::Registers | FrameKind::End).then_some(entry)
}

/// The changes that redirect one frame through one stub; `None` if the stub or its entry is not what it should be.
fn redirect<M: Memory>(
    kernel: &Running<'_, M>,
    module: &Module,
    (start, index): (Gva, usize),
    made: Option<&Stub>,
    leave: Leave,
    entry: Entry,
) -> Option<([Edit; 3], Stub)> {
    let here = at(start, index);
    let bytes = stub::stub(here, leave.to)?;
    let before = made.map_or(EMPTY, |stub| stub.bytes);
    if kernel.space().array(here) != Ok(before) {
        return None;
    }
    let (place, found) = entry_at(kernel, module, here)?;
    let is_ours = match made {
        Some(stub) => found == stub.entry,
        None => is_placeholder(kernel, found, index),
    };
    let edit = |at, before: &[u8], after: &[u8]| Edit { at, before: before.into(), after: after.into() };
    let edits = [
        edit(here, &before, &bytes),
        edit(place, &found, &entry),
        edit(leave.slot, &leave.to.0.to_le_bytes(), &stub::entry(here).0.to_le_bytes()),
    ];
    is_ours.then_some((edits, Stub { bytes, entry, waits: true }))
}

/// Where the entry of the guest's table is that is for the stub at `here` alone, and what it is.
fn entry_at<M: Memory>(kernel: &Running<'_, M>, module: &Module, here: Gva) -> Option<(Gva, Entry)> {
    let text = here..here.wrapping_add(BYTES as u64);
    let index = module.orc.as_ref().ok()?.only(&text)?;
    let (address, place) = module.orc_entry(index);
    // The table was read when the module was new.
    let addresses = kernel.space().array::<8>(address).ok()?;
    let said = |number: usize| {
        let place = address.wrapping_add(4 * number as u64);
        Some(place.wrapping_offset(i32_at(&addresses, 4 * number)?.into()))
    };
    let same = said(0) == Some(text.start) && said(1) == Some(text.end);
    Some((place, kernel.space().array(place).ok()?)).filter(|_| same)
}

/// Whether an entry is what the patch's module has in the file for the stub number `index`.
fn is_placeholder<M: Memory>(kernel: &Running<'_, M>, entry: Entry, index: usize) -> bool {
    let expected = OrcEntry {
        sp: Base::Sp,
        sp_offset: placeholder(index),
        bp: Base::Undefined,
        bp_offset: 0,
        kind: FrameKind::Call,
        signal: false,
    };
    kernel.model().image().orc().layout().entry(&entry, 0) == Some(expected)
}
