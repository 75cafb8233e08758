//! The thread of one vCPU.
//!
//! ```text
//!             exit served              request seen          parked
//!  Running ---------------> Running ------------------> Draining -------> Parked
//!     |                                                    ^                |
//!     | fatal exit: reported                               +---- resume ----+
//!     v                                                                     |
//!  Dead (waits, so that its registers stay readable) <------- stop ---------+--> ended
//! ```

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{kvm_regs, kvm_sregs};
use update_server::guest::Vcpu;

use super::cpuid::CpuModel;
use super::exit::{ExitKind, VmExit};
use super::pause::{PauseError, Rendezvous};
use super::serving::{PortsAndMemory, Served, serve};
use super::snapshot::snapshot;
use super::tombstones::Met;
use super::unemulated::Unemulated;
use super::{msr, regs};
use crate::boot::BootEntry;
use crate::sys::kick::Kick;
use crate::sys::kvm::{GuestVm, KvmError};
use crate::sys::vcpu::{Attached, VcpuPeer, VcpuRun};
use crate::trap::{After, Means, Traps};

/// Stack of a vCPU thread. Exit handlers neither recurse nor keep large buffers on the stack.
const STACK: usize = 256 << 10;
/// Further exits of one instruction while its I/O is completed: a string instruction leaves once for each page
/// of its buffer (KVM's PIO buffer is one page), so 65,536 units end long before this.
const DRAIN_LIMIT: usize = 1 << 17;

/// Why a vCPU cannot run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestStop {
    /// The guest reset the machine by a triple fault, meant or not.
    TripleFault,
    /// Neither KVM nor this VMM knows how to go on.
    Stuck(String),
    /// The guest entered system management mode, where this VMM cannot watch it.
    SystemManagementMode,
}

/// Exits of one vCPU by kind.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; ExitKind::NAMES.len()]);

impl ExitCounters {
    pub(crate) fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were of `kind`.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

/// What every vCPU thread of a machine shares.
struct Shared {
    rendezvous: Rendezvous,
    traps: Traps,
    bus: Arc<PortsAndMemory>,
    /// What each vCPU has left in its registers when it was parked.
    registers: Vec<Mutex<Option<(kvm_regs, kvm_sregs)>>>,
    on_stop: Box<dyn Fn(u8, GuestStop) + Send + Sync>,
}

/// All vCPU threads of a machine.
pub struct VcpuThreads {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    counters: Vec<Arc<ExitCounters>>,
    peers: Vec<VcpuPeer>,
    kicks: Vec<Arc<Kick>>,
}

impl fmt::Debug for VcpuThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThreads").field("count", &self.counters.len()).finish_non_exhaustive()
    }
}

impl VcpuThreads {
    /// Creates `cpus` vCPUs and starts their threads; vCPU 0 begins at `entry`, the others wait for INIT.
    ///
    /// `means` says how trapped accesses are carried out, or why they cannot be.
    /// `on_stop` hears of a vCPU that cannot run on, from that vCPU's thread.
    pub fn start(
        vm: &Arc<GuestVm>,
        model: &CpuModel,
        cpus: u8,
        entry: BootEntry,
        bus: Arc<PortsAndMemory>,
        means: Result<Means, String>,
        on_stop: impl Fn(u8, GuestStop) + Send + Sync + 'static,
    ) -> Result<Self, KvmError> {
        let mut vcpus = Vec::with_capacity(usize::from(cpus));
        for id in 0..cpus {
            let vcpu = vm.create_vcpu(id)?;
            // CPUID comes first: KVM checks MSRs against it (KVM api.rst 4.89).
            model.apply(vm.fd(), vcpu.fd(), id)?;
            msr::set_boot_msrs(vcpu.fd())?;
            if vm.has_system_management() {
                msr::close_system_management(vcpu.fd())?;
            }
            if id == 0 {
                regs::set_boot_state(vcpu.fd(), entry)?;
            }
            vcpus.push(vcpu);
        }
        let peers = vcpus.iter().map(VcpuRun::peer).collect::<io::Result<_>>();
        let peers = peers.map_err(|source| KvmError { call: "a second descriptor of a vCPU", source })?;
        let kicks: Vec<_> = vcpus.iter().map(|vcpu| Arc::clone(vcpu.kick())).collect();
        let traps = Traps::new(vm, &kicks, means)?;
        let rendezvous = Rendezvous::default();
        let registers = vcpus.iter().map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { rendezvous, traps, bus, registers, on_stop: Box::new(on_stop) });
        let this = Self {
            shared,
            threads: Mutex::default(),
            counters: vcpus.iter().map(|_| Arc::default()).collect(),
            peers,
            kicks,
        };
        for (id, vcpu) in (0..).zip(vcpus) {
            let shared = Arc::clone(&this.shared);
            let counters = Arc::clone(&this.counters[usize::from(id)]);
            shared.rendezvous.enlist();
            let spawned = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(STACK)
                .spawn(move || run_thread(id, vcpu, &shared, &counters));
            match spawned {
                Ok(thread) => this.lock_threads().push(thread),
                Err(source) => {
                    this.shared.rendezvous.leave();
                    this.stop();
                    return Err(KvmError { call: "a vCPU thread", source });
                }
            }
        }
        Ok(this)
    }

    /// Stops all vCPUs where they are; their I/O is complete when this returns.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.shared.rendezvous.pause(|| self.kick())
    }

    /// Lets them run on.
    pub fn resume(&self) {
        self.shared.rendezvous.resume();
    }

    /// Ends all vCPU threads and waits for them.
    pub fn stop(&self) {
        self.shared.rendezvous.stop();
        self.shared.rendezvous.wait_until_left(|| self.kick());
        for thread in std::mem::take(&mut *self.lock_threads()) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked; this is a bug");
            }
        }
        self.shared.traps.end();
    }

    /// The accesses that are trapped.
    pub fn traps(&self) -> &Traps {
        &self.shared.traps
    }

    /// What every vCPU was doing when it was paused. Only while a pause is held; KVM would let this wait otherwise.
    pub fn snapshots(&self) -> Result<Vec<Vcpu>, KvmError> {
        let vcpus = (0..).zip(&self.peers).zip(&self.shared.registers);
        let all = vcpus.map(|((id, peer), left)| {
            snapshot(id, peer, left.lock().unwrap_or_else(PoisonError::into_inner).as_ref())
        });
        all.collect()
    }

    /// Exit counters by vCPU.
    pub fn counters(&self) -> &[Arc<ExitCounters>] {
        &self.counters
    }

    fn kick(&self) {
        for kick in &self.kicks {
            if let Err(error) = kick.send() {
                tracing::error!("cannot signal a vCPU thread: {error}");
            }
        }
    }

    fn lock_threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run_thread(id: u8, mut vcpu: VcpuRun, shared: &Shared, counters: &ExitCounters) {
    struct Leave<'a>(&'a Rendezvous);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.leave();
        }
    }
    let _leave = Leave(&shared.rendezvous);
    let mut vcpu = vcpu.attach();
    loop {
        let stop = match running(id, &mut vcpu, shared, counters) {
            Ok(()) => drain(id, &mut vcpu, shared, counters).err(),
            Err(stop) => Some(stop),
        };
        if let Some(stop) = stop {
            (shared.on_stop)(id, located(stop, &vcpu));
            shared.rendezvous.park_until_stopped();
            return;
        }
        let left = |registers| {
            let place = &shared.registers[usize::from(id)];
            *place.lock().unwrap_or_else(PoisonError::into_inner) = registers;
        };
        left(vcpu.registers());
        if !shared.rendezvous.park() {
            return;
        }
        left(None);
        // Tells the guest that it was stopped, so that its watchdogs stay quiet (KVM api.rst 4.71). A guest
        // that does not use kvmclock answers EINVAL, and has no flag to set.
        if let Err(error) = vcpu.fd().kvmclock_ctrl()
            && error.errno() != libc::EINVAL
        {
            tracing::warn!("vCPU {id}: KVM_KVMCLOCK_CTRL: {error}");
        }
    }
}

/// Serves exits until somebody wants the vCPU out.
fn running(
    id: u8,
    vcpu: &mut Attached<'_>,
    shared: &Shared,
    counters: &ExitCounters,
) -> Result<(), GuestStop> {
    let mut unemulated = Unemulated::default();
    while !shared.rendezvous.requested() {
        shared.traps.enter(id);
        let exit = vcpu.run();
        shared.traps.leave(id);
        let exit = exit.map_err(|error| kvm_run_failed(&error))?;
        counters.count(exit.kind());
        let after = match exit {
            VmExit::Interrupted => After::GoOn,
            VmExit::NotEmulated { .. } => {
                if unemulated.may_try_again(rip(vcpu)?) {
                    shared.traps.not_emulated(id, vcpu, counters)?
                } else {
                    After::Serve { guest_steps: false }
                }
            }
            VmExit::Trapped => shared.traps.trapped(id, vcpu, counters)?,
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            _ => After::Serve { guest_steps: false },
        };
        if let After::Serve { guest_steps } = after {
            serve_to_its_end(id, vcpu, shared, counters, guest_steps)?;
        }
    }
    Ok(())
}

/// Serves the last exit. A guest that steps through its own code hears of the instruction when that is complete.
fn serve_to_its_end(
    id: u8,
    vcpu: &mut Attached<'_>,
    shared: &Shared,
    counters: &ExitCounters,
    guest_steps: bool,
) -> Result<(), GuestStop> {
    let exit = vcpu.last_exit();
    let begun = !matches!(exit, VmExit::NotEmulated { .. });
    // KVM lets a guest's own step end silently behind a write to a device, trapped or not.
    let silent = matches!(exit, VmExit::MmioWrite { .. } | VmExit::PortOut { .. });
    if matches!(exit, VmExit::Tombstone) && stays_at_tombstone(id, vcpu, shared, counters)? {
        return if guest_steps { shared.traps.guest_step(vcpu, false) } else { Ok(()) };
    }
    let served = serve(id, vcpu, &shared.bus, &shared.traps)?;
    if guest_steps || served == Served::GuestStep {
        let done = begun && drain(id, vcpu, shared, counters)?;
        shared.traps.guest_step(vcpu, done && (served == Served::GuestStep || !silent))?;
    }
    Ok(())
}

fn rip(vcpu: &Attached<'_>) -> Result<u64, GuestStop> {
    let registers = vcpu.general_registers().map_err(|error| GuestStop::Stuck(error.to_string()))?;
    Ok(registers.rip)
}

/// Completes the I/O of the last exit, so that the registers are those after its instruction; or in front of it, where KVM cannot
/// emulate the rest. Returns whether it is done; otherwise it will be tried again when the guest runs on.
fn drain(
    id: u8,
    vcpu: &mut Attached<'_>,
    shared: &Shared,
    counters: &ExitCounters,
) -> Result<bool, GuestStop> {
    let mut guest_step = false;
    for _ in 0..DRAIN_LIMIT {
        // KVM writes to guest memory for it.
        shared.traps.enter(id);
        let exit = vcpu.drain();
        shared.traps.leave(id);
        let exit = exit.map_err(|error| kvm_run_failed(&error))?;
        match exit {
            VmExit::Interrupted => {
                if guest_step {
                    shared.traps.guest_step(vcpu, true)?;
                }
                return Ok(true);
            }
            VmExit::NotEmulated { .. } => {
                counters.count(exit.kind());
                return Ok(false);
            }
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            exit => counters.count(exit.kind()),
        }
        guest_step |= serve(id, vcpu, &shared.bus, &shared.traps)? == Served::GuestStep;
    }
    Err(GuestStop::Stuck(format!("one instruction left the guest more than {DRAIN_LIMIT} times")))
}

/// Serves a read as tombstones make it, if it is one's. Who comes to a tombstone is put back in front of it, with all registers as
/// they were: it comes there again until the old code is back, and then goes on in that. Any other is a read of a port without a
/// device.
fn stays_at_tombstone(
    id: u8,
    vcpu: &mut Attached<'_>,
    shared: &Shared,
    counters: &ExitCounters,
) -> Result<bool, GuestStop> {
    let stuck = |error: KvmError| GuestStop::Stuck(error.to_string());
    if shared.bus.tombstones.any() {
        // Before the read is completed they are those of its instruction, as of a hypercall.
        let before = vcpu.fd().get_regs().map_err(KvmError::of("KVM_GET_REGS")).map_err(stuck)?;
        let segments = vcpu.fd().get_sregs().map_err(KvmError::of("KVM_GET_SREGS")).map_err(stuck)?;
        // The privilege level is that of the stack's segment.
        if segments.ss.dpl == 0 && shared.bus.tombstones.meet(Met { vcpu: id, rip: before.rip }) {
            drain(id, vcpu, shared, counters)?;
            vcpu.set_general_registers(&before).map_err(|error| GuestStop::Stuck(error.to_string()))?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Adds where the vCPU is to why it cannot go on.
fn located(stop: GuestStop, vcpu: &Attached<'_>) -> GuestStop {
    match (stop, vcpu.fd().get_regs()) {
        (GuestStop::Stuck(what), Ok(regs)) => GuestStop::Stuck(format!("{what}, at RIP {:#x}", regs.rip)),
        (stop, _) => stop,
    }
}

fn kvm_run_failed(error: &io::Error) -> GuestStop {
    GuestStop::Stuck(format!("KVM_RUN: {error}"))
}
