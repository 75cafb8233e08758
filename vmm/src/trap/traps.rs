//! Every trapped access of one guest, in the one order in which they take effect.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::FairMutex;
use update_server::addr::{Gpa, Gva};
use update_server::watch::{Accessed, By, Kind, Lost, Watcher};

use super::alarm::Alarm;
use super::armed::ArmedPages;
use super::decode::Decodings;
use super::doors::Doors;
use super::finish;
use super::frame;
use super::ground::{self, Ground};
use super::handlers::Handlers;
use super::hypervisor::{self, HypervisorPages};
use super::in_place;
use super::look::Look;
use super::order::Order;
use super::proof::Means;
use super::quiet::QuietVcpu;
use super::ram::Ram;
use super::space::Space;
use super::tally::Tally;
use crate::memory::GuestMemory;
use crate::sys::kick::Kick;
use crate::sys::kvm::{GuestVm, KvmError};
use crate::sys::vcpu::Attached;
use crate::sys::{PAGE, Protection};
use crate::vcpu::{ExitCounters, GuestStop, VmExit};

/// What the vCPU's thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Lets the guest run on.
    GoOn,
    /// Serves the last exit, which is not that of a trap.
    Serve {
        /// Whether the guest steps through its own code: then the instruction is to be completed, and [`Traps::guest_step`] called.
        guest_steps: bool,
    },
}

/// The traps of one guest.
pub struct Traps {
    pub(super) vm: Arc<GuestVm>,
    pub(super) order: Arc<FairMutex<Order>>,
    pub(super) alarm: Alarm,
    /// Where vCPUs can be held, if they have to be.
    doors: Option<Arc<Doors>>,
    /// Whether anything is watched.
    pub(super) passing: AtomicBool,
    /// Whether anything was ever watched.
    pub(super) ever: AtomicBool,
    pub(super) blocks_interrupts: bool,
}

/// Hears nothing.
struct Nobody;

impl Watcher for Nobody {
    fn accessed(&self, _: &Accessed<'_>) {}

    fn lost(&self, page: Gpa, why: &Lost) {
        tracing::warn!("the page at {page} is no longer watched: {why}");
    }
}

impl Traps {
    /// Nothing is watched yet, and nothing can be without `means`. `kicks` has one for each vCPU, by number.
    pub fn new(
        vm: &Arc<GuestVm>,
        kicks: &[Arc<Kick>],
        means: Result<Means, String>,
    ) -> Result<Self, KvmError> {
        let held = means.as_ref().is_ok_and(|means| !means.second_view);
        let blocks_interrupts = means.as_ref().is_ok_and(|means| means.blocks_interrupts);
        let doors = held.then(|| Arc::new(Doors::new(kicks)));
        let ground = means.map(|_| doors.as_ref().map_or_else(Ground::second_view, Ground::all_held));
        let spare = u8::try_from(kicks.len()).unwrap_or(u8::MAX);
        let quiet = blocks_interrupts.then(|| QuietVcpu::new(vm, spare)).transpose()?;
        // Before the first vCPU runs: what it named to KVM earlier would not be known.
        let ground = match vm.watch_msrs(&hypervisor::watched()) {
            Ok(()) => ground,
            Err(error) => Err(format!("where KVM itself writes cannot be told: {error}")),
        };
        if ground.is_ok() {
            vm.leave_unemulated();
        }
        let order = Arc::new(FairMutex::new(Order {
            pages: ArmedPages::new(Ram(vm.ram().clone()), Arc::new(Nobody)),
            ground,
            hypervisor: HypervisorPages::default(),
            quiet,
            ended: false,
            handlers: Handlers::default(),
            decodings: Decodings::new(),
            look: Look::default(),
            in_vain: vec![(0, 0); kicks.len()],
        }));
        let alarm = Alarm::start(kicks, &order)
            .map_err(|source| KvmError { call: "a thread that watches steps", source })?;
        Ok(Self {
            vm: Arc::clone(vm),
            order,
            alarm,
            doors,
            passing: AtomicBool::new(false),
            ever: AtomicBool::new(false),
            blocks_interrupts,
        })
    }

    /// Has vCPUs leave their state at each exit, from the next entry on; [`Traps::set_access`] decides whether it stays so. What an
    /// instruction was in the middle of before that KVM would have to take back when it fails, and does not
    /// (arch/x86/kvm/x86.c, `__get_regs`): so this comes before the pause in which all are completed.
    pub(crate) fn expect(&self) {
        self.vm.set_traps(true);
    }

    /// The guest's RAM.
    pub(crate) fn memory(&self) -> &GuestMemory {
        self.vm.ram().memory()
    }

    /// Who hears of accesses from now on.
    pub fn set_watcher(&self, watcher: Arc<dyn Watcher>) {
        self.order.lock().pages.set_watcher(watcher);
    }

    /// What there was so far.
    pub fn tally(&self) -> Tally {
        self.order.lock().pages.tally
    }

    /// What is watched: first bytes, in their order.
    pub fn pages(&self) -> Vec<Gpa> {
        self.order.lock().pages.pages.keys().copied().map(Gpa).collect()
    }

    /// Both, as of one moment.
    pub fn pages_and_tally(&self) -> (Vec<Gpa>, Tally) {
        let order = self.order.lock();
        (order.pages.pages.keys().copied().map(Gpa).collect(), order.pages.tally)
    }

    /// Whether steps are made in the second view, so that no vCPU waits for another's.
    pub fn leave_others_alone(&self) -> bool {
        self.doors.is_none()
    }

    /// A vCPU is about to enter the guest.
    pub fn enter(&self, id: u8) {
        if let Some(doors) = &self.doors {
            doors.enter(usize::from(id));
        }
    }

    /// It has left.
    pub fn leave(&self, id: u8) {
        if let Some(doors) = &self.doors {
            doors.leave(usize::from(id));
        }
    }

    /// Whether an address without a device is RAM after all: an access to it that leaves the guest is one of KVM's emulator to a
    /// protected page.
    pub fn is_ram(&self, address: u64) -> bool {
        let regions = self.vm.ram().layout().ranges();
        regions.iter().any(|range| (range.start..range.start + range.len).contains(&address))
    }

    /// Does for a vCPU what it was trapped at, and tells of it. `exits` counts those of a step.
    pub fn trapped(&self, id: u8, vcpu: &mut Attached<'_>, exits: &ExitCounters) -> Result<After, GuestStop> {
        let mut order = self.order.lock();
        let state = vcpu.state().map_err(|error| stuck(&error))?;
        order.pages.tell_marks();
        let space = Space::of(&state);
        let injected = frame::injected(&state.events);
        order.look(space.as_ref(), injected);
        if !order.look.tables.is_empty() {
            let tables = std::mem::take(&mut order.look.tables);
            for page in tables {
                self.lose(&mut order, page, &Lost::Table);
            }
            return Ok(After::GoOn);
        }
        if order.look.parts.is_empty() && !order.look.others && order.comes_in_vain(id, state.regs.rip)? {
            return Ok(After::GoOn);
        }
        if order.pages.pages.is_empty() {
            order.comes_in_vain(id, state.regs.rip)?;
            return Ok(After::GoOn);
        }
        let by = By::Vcpu { id: id.into(), rip: Gva(state.regs.rip) };
        if injected.is_none()
            && state.events.interrupt.shadow == 0
            && let Some(space) = &space
            && in_place::knows(&order.look)
            && !finish::has_breakpoints(vcpu)
        {
            let Order { look, pages, .. } = &mut *order;
            if let Some(regs) = in_place::carry_out(space, look, pages, by) {
                if look.frame.is_some() {
                    finish::forget_soft_event(vcpu).map_err(|error| stuck(&error))?;
                }
                vcpu.set_general_registers(&regs).map_err(|error| stuck(&error))?;
                order.pages.tally.in_place += 1;
                order.in_vain[usize::from(id)] = (0, 0);
                return Ok(After::GoOn);
            }
        }
        self.step(&mut order, id, vcpu, &state, space.as_ref(), exits)
    }

    /// Does the same for one at whose instruction KVM's emulator has failed: it needs a protected page, or needed one when KVM came
    /// there. KVM compares and exchanges in the page itself (arch/x86/kvm/x86.c, `emulator_cmpxchg_emulated`), and fetches code.
    pub fn not_emulated(
        &self,
        id: u8,
        vcpu: &mut Attached<'_>,
        exits: &ExitCounters,
    ) -> Result<After, GuestStop> {
        if self.passing.load(Ordering::SeqCst) {
            self.trapped(id, vcpu, exits)
        } else if self.ever.load(Ordering::SeqCst) {
            // If it was a page that is watched no longer, it is enough to try again.
            Ok(After::GoOn)
        } else {
            Ok(After::Serve { guest_steps: false })
        }
    }

    /// Lets a guest go on to step through its own code behind an instruction that was completed outside of our step; `raise`: with
    /// the exception that it waits for.
    pub fn guest_step(&self, vcpu: &mut Attached<'_>, raise: bool) -> Result<(), GuestStop> {
        finish::guest_step(vcpu, raise).map_err(|error| stuck(&error))
    }

    /// Serves an access of KVM's own emulator to RAM that is protected: of what was the last exit.
    pub fn emulated(&self, id: u8, rip: u64, exit: VmExit<'_>) {
        let by = By::Vcpu { id: id.into(), rip: Gva(rip) };
        let mut order = self.order.lock();
        order.pages.tell_marks();
        let pages = &mut order.pages;
        match exit {
            VmExit::MmioWrite { address, data } => {
                // KVM cuts such accesses at the ends of pages (arch/x86/kvm/x86.c, `emulator_read_write`).
                if let Some(slice) = pages.ram.slice(Gpa(address), data.len()) {
                    slice.copy_from(data);
                    pages.tally.emulated += 1;
                    pages.tell(Gpa(address), data.len(), Kind::Write, by);
                }
            }
            VmExit::MmioRead { address, data } => {
                if let Some(slice) = pages.ram.slice(Gpa(address), data.len()) {
                    slice.copy_to(data);
                    pages.tally.emulated += 1;
                    pages.tell(Gpa(address), data.len(), Kind::Read, by);
                }
            }
            _ => {}
        }
    }

    /// Writes a register that may name a page to KVM, for the guest.
    pub fn write_msr(&self, id: u8, vcpu: &mut Attached<'_>, index: u32, value: u64) {
        let mut order = self.order.lock();
        if let Some(named) = hypervisor::named(index, value) {
            for page in named.pages {
                if order.pages.pages.contains_key(&page.0) {
                    order.pages.tell_marks();
                    order.pages.compare(page, By::Unseen);
                    self.lose(&mut order, page, &Lost::Hypervisor { what: named.what });
                }
            }
        }
        if hypervisor::write(vcpu.fd(), index, value) {
            order.hypervisor.set(id, index, value);
        } else {
            vcpu.refuse_msr();
        }
    }

    /// No vCPU runs any more.
    pub fn end(&self) {
        let mut order = self.order.lock();
        order.ended = true;
        let watched = order.pages.pages.keys().copied().collect();
        order.catch_up(&watched);
        self.lose_all(&mut order, &Lost::Ended);
    }

    /// Watches no page any longer, and says why.
    pub(super) fn lose_all(&self, order: &mut Order, why: &Lost) {
        let all: Vec<Gpa> = order.pages.pages.keys().copied().map(Gpa).collect();
        for page in all {
            self.lose(order, page, why);
        }
    }

    /// Watches a page no longer, and says why.
    pub(super) fn lose(&self, order: &mut Order, page: Gpa, why: &Lost) {
        if order.pages.pages.remove(&page.0).is_none() {
            return;
        }
        if let Some((region, offset)) = order.pages.ram.region(page, PAGE) {
            region.marks().watch(offset / PAGE, false);
            if let Err(error) = ground::first(region).protect(offset, PAGE, Protection::Open) {
                tracing::error!("the page at {page} cannot be opened again: {error}");
            }
        }
        order.pages.tally.lost += 1;
        let watcher = Arc::clone(order.pages.watcher());
        watcher.lost(page, why);
        self.settle(order);
    }

    /// Does what the first page and the last one bring with them.
    pub(super) fn settle(&self, order: &mut Order) {
        let any = !order.pages.pages.is_empty();
        self.vm.set_traps(any);
        if any == self.passing.load(Ordering::Relaxed) {
            return;
        }
        if let Some(quiet) = &order.quiet
            && let Err(error) = quiet.hold(any)
        {
            // Steps are right all the same, and slower.
            tracing::warn!("KVM_SET_GUEST_DEBUG of a vCPU that never runs: {error}");
        }
        self.passing.store(any, Ordering::SeqCst);
        self.ever.store(true, Ordering::SeqCst);
        self.alarm.watch(any);
        order.pages.ram.0.regions().for_each(|region| region.marks().watch_any(any));
        if !any
            && let Ok(ground) = &mut order.ground
            && let Err(error) = ground.rest(&order.pages.ram)
        {
            tracing::error!("the second view cannot be opened again: {error}");
        }
    }
}

pub(super) fn stuck(error: &io::Error) -> GuestStop {
    GuestStop::Stuck(format!("a trapped access could not be carried out: {error}"))
}

impl std::fmt::Debug for Traps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traps").finish_non_exhaustive()
    }
}
