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

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_regs, kvm_sregs};
use update_server::addr::{Gpa, Gva};
use update_server::guest::Vcpu;
use update_server::kernel::paging::PageTables;
use update_server::watch::{Access, NotWatched, Watched};
use update_server::x86::stub;

use super::caller::caller;
use super::cpuid::CpuModel;
use super::exit::{ExitKind, VmExit};
use super::pause::{PauseError, Rendezvous};
use super::snapshot::snapshot;
use super::tombstones::{Met, TOMBSTONE_PORT, Tombstones};
use super::{msr, regs};
use crate::agent::HypercallPort;
use crate::boot::BootEntry;
use crate::config::Trapping;
use crate::device::bus::Bus;
use crate::device::pci::PciBus;
use crate::inspect::GuestBytes;
use crate::sys::kvm::{GuestVm, KvmError};
use crate::sys::vcpu::{Attached, Kick, VcpuPeer, VcpuRun};
use crate::trap::{After, Traps};
use crate::update::StubExits;

/// Stack of a vCPU thread. Exit handlers neither recurse nor keep large buffers on the stack.
const STACK: usize = 256 << 10;
/// Page tables of a guest that are looked through, 4 KiB each: as many as map 512 GiB in small pages.
const MOST_TABLES: usize = 1 << 18;
/// Further exits of one instruction while its I/O is completed: a string instruction leaves once for each page
/// of its buffer (KVM's PIO buffer is one page), so 65,536 units end long before this.
const DRAIN_LIMIT: usize = 1 << 17;

/// Where exits go: the two address spaces of a PC, and hypercalls.
#[derive(Debug)]
pub struct PortsAndMemory {
    /// I/O ports.
    pub ports: Bus,
    /// Memory addresses without RAM.
    pub pci: Arc<PciBus>,
    /// Hypercalls. They are on no bus: they need the registers and page tables of the vCPU that makes them.
    pub hypercalls: HypercallPort,
    /// Tombstones. They are on no bus, either: where the vCPU stands is what matters.
    pub tombstones: Arc<Tombstones>,
    /// Stubs of patches, which are told by where the vCPU is.
    pub stubs: Arc<StubExits>,
}

impl PortsAndMemory {
    /// Serves any exit but those that need the vCPU's registers.
    fn serve(&self, exit: VmExit<'_>) -> Result<(), GuestStop> {
        match exit {
            VmExit::PortIn { port, size, data } => {
                data.chunks_mut(size).for_each(|unit| self.ports.read(u64::from(port), unit));
            }
            VmExit::PortOut { port, size, data } => {
                data.chunks(size).for_each(|unit| self.ports.write(u64::from(port), unit));
            }
            VmExit::MmioRead { address, data } => {
                data.fill(0xff);
                self.pci.read_memory(address, data);
            }
            VmExit::MmioWrite { address, data } => {
                self.pci.write_memory(address, data);
            }
            VmExit::Interrupted
            | VmExit::Hypercall
            | VmExit::Tombstone
            | VmExit::Stub { .. }
            | VmExit::MsrWrite { .. } => {}
            VmExit::Trapped => {
                return Err(GuestStop::Stuck(
                    "memory that the host cannot give it (KVM_RUN: EFAULT)".to_owned(),
                ));
            }
            VmExit::Stepped => {
                return Err(GuestStop::Stuck(
                    "one instruction was carried out, which nobody asked for".to_owned(),
                ));
            }
            VmExit::Shutdown => return Err(GuestStop::TripleFault),
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            VmExit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, data } => {
                return Err(GuestStop::Stuck(format!(
                    "an instruction that KVM cannot emulate, or code where there is no RAM (KVM internal error, \
                     data {data:x?})"
                )));
            }
            VmExit::InternalError { suberror, data } => {
                return Err(GuestStop::Stuck(format!("KVM internal error {suberror}, data {data:x?}")));
            }
            VmExit::FailEntry { reason } => {
                return Err(GuestStop::Stuck(format!(
                    "the CPU refused the guest's state, reason {reason:#x}"
                )));
            }
            VmExit::Unexpected { reason } => {
                return Err(GuestStop::Stuck(format!("KVM exit {reason}, which this VMM does not know")));
            }
        }
        Ok(())
    }
}

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
    fn count(&self, kind: ExitKind) {
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
    /// `on_stop` hears of a vCPU that cannot run on, from that vCPU's thread.
    pub fn start(
        vm: &Arc<GuestVm>,
        model: &CpuModel,
        cpus: u8,
        entry: BootEntry,
        bus: Arc<PortsAndMemory>,
        trapping: Trapping,
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
        let traps = Traps::new(vm, &kicks, trapping)?;
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

    /// Every page table that a vCPU uses, by its first byte. Stops the vCPUs for the moment that it takes to see where they begin.
    pub fn page_tables(&self) -> Result<HashSet<u64>, NotWatched> {
        let failed = |error: &dyn fmt::Display| NotWatched::Host(error.to_string());
        self.pause().map_err(|error| failed(&error))?;
        let vcpus = self.snapshots();
        self.resume();
        let memory = self.shared.traps.memory();
        let mut found = HashSet::new();
        for vcpu in vcpus.map_err(|error| failed(&error))?.into_iter().filter(|vcpu| vcpu.started) {
            let tables = PageTables::new(vcpu.cr3, vcpu.cr4);
            if !tables.tables(&GuestBytes(memory), MOST_TABLES, &mut found) {
                return Err(NotWatched::Host(format!(
                    "the guest has more than {MOST_TABLES} page tables, too many to look through"
                )));
            }
        }
        Ok(found)
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

impl Watched for VcpuThreads {
    fn set_access(&self, pages: &[Gpa], access: Option<Access>) -> Result<(), NotWatched> {
        let tables = if access.is_some() { self.page_tables()? } else { HashSet::new() };
        self.shared.traps.set_access(pages, access, &tables)
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
    while !shared.rendezvous.requested() {
        shared.traps.enter(id);
        let exit = vcpu.run();
        shared.traps.leave(id);
        let exit = exit.map_err(|error| kvm_run_failed(&error))?;
        counters.count(exit.kind());
        match exit {
            VmExit::Interrupted => {}
            VmExit::Tombstone => serve_tombstone(id, vcpu, shared, counters)?,
            VmExit::Trapped => {
                if shared.traps.trapped(id, vcpu)? == After::Serve {
                    counters.count(vcpu.last_exit().kind());
                    serve(id, vcpu, shared)?;
                }
            }
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            _ => serve(id, vcpu, shared)?,
        }
    }
    Ok(())
}

/// Serves the last exit, unless it is one for which the vCPU may be put elsewhere.
fn serve(id: u8, vcpu: &mut Attached<'_>, shared: &Shared) -> Result<(), GuestStop> {
    let emulated = match vcpu.last_exit() {
        VmExit::MmioRead { address, .. } | VmExit::MmioWrite { address, .. } => shared.traps.is_ram(address),
        _ => false,
    };
    if emulated {
        let regs = vcpu.general_registers().map_err(|error| GuestStop::Stuck(error.to_string()))?;
        shared.traps.emulated(id, regs.rip, vcpu.last_exit());
        return Ok(());
    }
    match vcpu.last_exit() {
        VmExit::Hypercall => serve_hypercall(vcpu, &shared.bus.hypercalls),
        // A further one of the same instruction is a string's.
        VmExit::Tombstone => {
            read_nothing(vcpu, shared);
            Ok(())
        }
        VmExit::Stub { value } => serve_stub(vcpu, &shared.bus, value),
        VmExit::MsrWrite { index, value } => {
            shared.traps.write_msr(id, vcpu, index, value);
            Ok(())
        }
        other => shared.bus.serve(other),
    }
}

/// Completes the I/O of the last exit, so that the registers are those after its instruction.
fn drain(id: u8, vcpu: &mut Attached<'_>, shared: &Shared, counters: &ExitCounters) -> Result<(), GuestStop> {
    for _ in 0..DRAIN_LIMIT {
        // KVM writes to guest memory for it.
        shared.traps.enter(id);
        let exit = vcpu.drain();
        shared.traps.leave(id);
        let exit = exit.map_err(|error| kvm_run_failed(&error))?;
        match exit {
            VmExit::Interrupted => return Ok(()),
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            exit => counters.count(exit.kind()),
        }
        serve(id, vcpu, shared)?;
    }
    Err(GuestStop::Stuck(format!("one instruction left the guest more than {DRAIN_LIMIT} times")))
}

/// Answers a hypercall: only here are registers read, so that other exits cost no more.
fn serve_hypercall(vcpu: &mut Attached<'_>, port: &HypercallPort) -> Result<(), GuestStop> {
    let caller = caller(vcpu.fd()).map_err(|error| GuestStop::Stuck(error.to_string()))?;
    vcpu.answer(port.serve(&caller));
    Ok(())
}

/// Serves a read as tombstones make it. One that comes to a tombstone is put back in front of it, with all registers as they were:
/// it comes there again until the old code is back, and then goes on in that. Any other is a read of a port without a device.
fn serve_tombstone(
    id: u8,
    vcpu: &mut Attached<'_>,
    shared: &Shared,
    counters: &ExitCounters,
) -> Result<(), GuestStop> {
    let stuck = |error: KvmError| GuestStop::Stuck(error.to_string());
    if shared.bus.tombstones.any() {
        // Before the read is completed they are those of its instruction, as of a hypercall.
        let before = vcpu.fd().get_regs().map_err(KvmError::of("KVM_GET_REGS")).map_err(stuck)?;
        let segments = vcpu.fd().get_sregs().map_err(KvmError::of("KVM_GET_SREGS")).map_err(stuck)?;
        // The privilege level is that of the stack's segment.
        if segments.ss.dpl == 0 && shared.bus.tombstones.meet(Met { vcpu: id, rip: before.rip }) {
            drain(id, vcpu, shared, counters)?;
            return vcpu.fd().set_regs(&before).map_err(KvmError::of("KVM_SET_REGS")).map_err(stuck);
        }
    }
    read_nothing(vcpu, shared);
    Ok(())
}

/// Answers a read of the port that tombstones name as the bus does.
fn read_nothing(vcpu: &mut Attached<'_>, shared: &Shared) {
    let mut data = [0; 4];
    shared.bus.ports.read(TOMBSTONE_PORT.into(), &mut data);
    vcpu.answer(u32::from_le_bytes(data));
}

/// Notes that a frame leaves through a stub. From anywhere else it is a write to a port like any other.
fn serve_stub(vcpu: &mut Attached<'_>, bus: &PortsAndMemory, value: u8) -> Result<(), GuestStop> {
    if bus.stubs.any() {
        let regs = vcpu.fd().get_regs().map_err(KvmError::of("KVM_GET_REGS"));
        let rip = regs.map_err(|error| GuestStop::Stuck(error.to_string()))?.rip;
        if bus.stubs.passed(Gva(rip)) {
            return Ok(());
        }
    }
    bus.ports.write(u64::from(stub::PORT), &[value]);
    Ok(())
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
