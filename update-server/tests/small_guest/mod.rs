//! A small guest with a stock kernel in its memory: two processors that are idle, tasks that sleep, a module, and the page
//! tables of all that. Another vCPU, which the test plays, may write to it while it is looked at.
#![allow(dead_code, unused_imports, reason = "each test takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod chain;
mod layout;
mod plan;
mod scheduler;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use update_server::addr::{Gpa, Gva};
use update_server::guest::{Memory, NoRam, Paused, Vcpu};

pub(crate) use plan::{Plan, STACK_BYTES, physical};
pub(crate) use scheduler::Scheduler;

/// What another vCPU does in between two readings: a word, and where it is written to.
pub(crate) type Write = (Gpa, u64);

/// Another vCPU.
type OtherVcpu<'p> = Box<dyn FnMut() -> Option<Write> + 'p>;

/// The guest of a plan, with what has been written to it since.
pub(crate) struct Guest<'p> {
    plan: &'p Plan,
    /// By physical address, each a multiple of 8.
    written: RefCell<BTreeMap<u64, u64>>,
    /// Asked before each reading, until the guest stands still.
    other_vcpu: RefCell<Option<OtherVcpu<'p>>>,
    reads: Cell<u64>,
    /// How many writes of the host's succeed before one fails, if one does.
    writes_left: Cell<Option<u64>>,
    /// Whether all fail that come after the one that fails.
    fails_for_good: Cell<bool>,
    vcpus: Vec<Vcpu>,
}

impl<'p> Guest<'p> {
    pub(crate) fn new(plan: &'p Plan) -> Self {
        Self {
            plan,
            written: RefCell::default(),
            other_vcpu: RefCell::new(None),
            reads: Cell::new(0),
            writes_left: Cell::new(None),
            fails_for_good: Cell::new(false),
            vcpus: plan.vcpus.clone(),
        }
    }

    /// Lets another vCPU run: before each reading, `step` says what it writes.
    pub(crate) fn run(&self, step: impl FnMut() -> Option<Write> + 'p) {
        *self.other_vcpu.borrow_mut() = Some(Box::new(step));
    }

    /// Makes it stand still.
    pub(crate) fn stop(&self) {
        *self.other_vcpu.borrow_mut() = None;
    }

    /// Puts others in the place of its vCPUs.
    pub(crate) fn set_vcpus(&mut self, vcpus: Vec<Vcpu>) {
        self.vcpus = vcpus;
    }

    /// Lets the host's write fail that comes after `count` others, and only that one.
    pub(crate) fn fail_write(&self, count: u64) {
        self.writes_left.set(Some(count));
    }

    /// Lets all of the host's writes fail that come after `count` others.
    pub(crate) fn fail_writes_from(&self, count: u64) {
        self.fail_write(count);
        self.fails_for_good.set(true);
    }

    fn takes_writes(&self) -> bool {
        let left = self.writes_left.get();
        if left == Some(0) && self.fails_for_good.get() {
            return false;
        }
        self.writes_left.set(left.and_then(|left| left.checked_sub(1)));
        left != Some(0)
    }

    /// All RAM as it is now.
    pub(crate) fn ram(&self) -> Vec<u8> {
        let mut ram = self.plan.ram.clone();
        for (&place, word) in self.written.borrow().iter() {
            let from = usize::try_from(place).unwrap();
            ram[from..from + 8].copy_from_slice(&word.to_le_bytes());
        }
        ram
    }

    /// How often it was read.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }

    pub(crate) fn write(&self, (at, word): Write) {
        self.written.borrow_mut().insert(at.0 & !7, word);
    }

    /// All that was written so far.
    pub(crate) fn save(&self) -> BTreeMap<u64, u64> {
        self.written.borrow().clone()
    }

    /// Takes back all that was written since it was saved.
    pub(crate) fn return_to(&self, saved: &BTreeMap<u64, u64>) {
        self.written.borrow_mut().clone_from(saved);
    }

    /// Takes back all that was written.
    pub(crate) fn restore(&self) {
        self.written.borrow_mut().clear();
    }
}

impl Memory for Guest<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        self.reads.set(self.reads.get() + 1);
        // Taken out meanwhile, so that it may look at the guest itself.
        let other = self.other_vcpu.borrow_mut().take();
        if let Some(mut step) = other {
            if let Some(write) = step() {
                self.write(write);
            }
            *self.other_vcpu.borrow_mut() = Some(step);
        }
        let outside = NoRam { at, len: into.len() };
        let from = usize::try_from(at.0).map_err(|_| outside)?;
        let ram = from.checked_add(into.len()).and_then(|end| self.plan.ram.get(from..end)).ok_or(outside)?;
        into.copy_from_slice(ram);
        let end = at.0 + into.len() as u64;
        for (&place, word) in self.written.borrow().range(at.0.saturating_sub(7)..end) {
            for (byte, index) in word.to_le_bytes().into_iter().zip(place..) {
                if (at.0..end).contains(&index) {
                    into[usize::try_from(index - at.0).unwrap()] = byte;
                }
            }
        }
        Ok(())
    }
}

impl Paused for Guest<'_> {
    fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), NoRam> {
        let outside = NoRam { at, len: bytes.len() };
        let end = at.0 + bytes.len() as u64;
        if usize::try_from(end).map_or(true, |end| end > self.plan.ram.len()) || !self.takes_writes() {
            return Err(outside);
        }
        for place in ((at.0 & !7)..end).step_by(8) {
            let mut word = [0; 8];
            self.read(Gpa(place), &mut word)?;
            for (byte, index) in word.iter_mut().zip(place..).filter(|(_, index)| (at.0..end).contains(index))
            {
                *byte = bytes[usize::try_from(index - at.0).unwrap()];
            }
            Guest::write(self, (Gpa(place), u64::from_le_bytes(word)));
        }
        Ok(())
    }
}

/// xorshift64: Marsaglia, Xorshift RNGs, Journal of Statistical Software 8 (2003). `state` is not 0.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The kernel's map of all memory, from physical address 0 on.
pub(crate) const DIRECT: u64 = 0xffff_8880_0000_0000;

/// Where something in the kernel's map of all memory is.
pub(crate) fn direct(at: u64) -> Gva {
    Gva(DIRECT + at)
}
