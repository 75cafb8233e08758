//! The tiny guest: one vCPU, 2 MiB, no kernel.

use std::collections::HashSet;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use kvm_ioctls::Kvm;
use update_server::addr::Gpa;
use update_server::watch::{Access, Accessed, Kind, Lost, Watcher};
use vm_memory::{Bytes, GuestAddress};

use super::Means;
use super::program::{
    APIC, CODE, DONE_PORT, GATES, IDT, Left, PAGE, PARTS, RESULT, STACK, STACK_PAGE, UNMAPPED, judge,
};
use crate::boot::{self, BootEntry, CODE_SELECTOR};
use crate::config::CpuProfile;
use crate::memory::GuestRam;
use crate::sys::kick::install_kick_handler;
use crate::sys::kvm::{GuestVm, Views};
use crate::sys::vcpu::VcpuRun;
use crate::trap::{After, Traps};
use crate::vcpu::{CpuModel, ExitCounters, VmExit, set_boot_state};

const MEMORY: u64 = 2 << 20;
/// How long it may take to its end: more than one step that has to be ended, and far more than an emulated host needs.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it may leave the guest: it has some thirty instructions.
const EXITS: usize = 1000;
/// A present gate of level 0 that switches interrupts off (Intel SDM vol. 3A, 6.14.1).
const INTERRUPT_GATE: u64 = 0x8e00;
/// Gates up to and with the last vector that is used.
const IDT_LIMIT: u16 = 0x41 * 16 - 1;

/// What was told: where, how, and the first eight bytes afterwards.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u64, Kind, u64)>>);

impl Watcher for Told {
    fn accessed(&self, access: &Accessed<'_>) {
        let mut word = [0; 8];
        let len = access.after.len().min(8);
        word[..len].copy_from_slice(&access.after[..len]);
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.push((access.at.0, access.kind, u64::from_le_bytes(word)));
    }

    fn lost(&self, _: Gpa, _: &Lost) {}
}

pub(super) struct Guest {
    vm: Arc<GuestVm>,
    vcpu: VcpuRun,
}

impl Guest {
    pub(super) fn new(kvm: &Kvm) -> Result<Self, io::Error> {
        install_kick_handler()?;
        let ram = GuestRam::new(MEMORY).map_err(io::Error::other)?;
        let vm = GuestVm::new(kvm, ram, Views::Both).map_err(io::Error::other)?;
        let vcpu = vm.create_vcpu(0).map_err(io::Error::other)?;
        let model = CpuModel::new(kvm, CpuProfile::Stock, 1).map_err(io::Error::other)?;
        model.apply(vm.fd(), vcpu.fd(), 0).map_err(io::Error::other)?;
        let entry = BootEntry { rip: CODE, zero_page: UNMAPPED };
        set_boot_state(vcpu.fd(), entry).map_err(io::Error::other)?;
        let guest = Self { vm, vcpu };
        guest.load().map_err(io::Error::other)?;
        guest.set_registers()?;
        Ok(guest)
    }

    fn load(&self) -> Result<(), vm_memory::GuestMemoryError> {
        let memory = self.vm.ram().memory();
        boot::write_tables(memory)?;
        for (at, code) in PARTS {
            memory.write_slice(code, GuestAddress(at))?;
        }
        for (vector, handler) in GATES {
            let low = handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | INTERRUPT_GATE << 32;
            memory.write_obj(low | handler >> 16 << 48, GuestAddress(IDT + vector * 16))?;
            memory.write_obj(handler >> 32, GuestAddress(IDT + vector * 16 + 8))?;
        }
        Ok(())
    }

    fn set_registers(&self) -> Result<(), kvm_ioctls::Error> {
        let fd = self.vcpu.fd();
        let mut sregs = fd.get_sregs()?;
        (sregs.idt.base, sregs.idt.limit) = (IDT, IDT_LIMIT);
        fd.set_sregs(&sregs)?;
        let mut regs = fd.get_regs()?;
        (regs.rdi, regs.rsi, regs.rsp, regs.rbx, regs.r8) = (PAGE, UNMAPPED, STACK, APIC, RESULT);
        fd.set_regs(&regs)
    }

    /// Whether KVM says that it has what `means` needs.
    pub(super) fn offers(&self, means: Means) -> bool {
        let second_view = self.vm.has_second_view() && self.vm.has_system_management();
        (second_view || !means.second_view) && (self.vm.can_block_interrupts() || !means.blocks_interrupts)
    }

    /// Runs it to its end with both pages watched, and says what was wrong.
    pub(super) fn run(self, means: Means) -> Result<(), String> {
        let Self { vm, mut vcpu } = self;
        let kick = Arc::clone(vcpu.kick());
        let traps =
            Traps::new(&vm, std::slice::from_ref(&kick), Ok(means)).map_err(|error| error.to_string())?;
        let told = Arc::new(Told::default());
        traps.set_watcher(Arc::clone(&told) as _);
        let pages = [Gpa(PAGE), Gpa(STACK_PAGE)];
        let watch = |access| traps.set_access(&pages, access, &HashSet::new());
        watch(Some(Access::All)).map_err(|error| error.to_string())?;
        thread::scope(|scope| {
            let (ended, end) = channel();
            let traps = &traps;
            let builder = thread::Builder::new().name("trap-proof".into());
            let run = builder.spawn_scoped(scope, move || go_through(&mut vcpu, traps, &ended));
            let run = run.map_err(|error| format!("there is no thread for it: {error}"))?;
            let in_time = end.recv_timeout(LIMIT).is_ok();
            while !run.is_finished() {
                // It looks at nothing but what KVM_RUN returns.
                kick.send().map_err(|error| error.to_string())?;
                thread::sleep(Duration::from_millis(1));
            }
            let result = run.join().map_err(|_| "its thread panicked; this is a bug".to_owned())?;
            if in_time { result } else { Err(format!("it did not come to its end within {LIMIT:?}")) }
        })?;
        watch(None).map_err(|error| error.to_string())?;
        let word = |at| vm.ram().memory().read_obj(GuestAddress(at)).unwrap_or(0_u64);
        let tally = traps.tally();
        let told = std::mem::take(&mut *told.0.lock().unwrap_or_else(PoisonError::into_inner));
        let left = Left {
            page: [word(PAGE), word(PAGE + 8)],
            result: [word(RESULT), word(RESULT + 8)],
            told,
            stepped: tally.stepped,
            delivered: tally.delivered,
            unfinished: tally.unfinished,
            lost: tally.lost,
            unseen: tally.unseen,
        };
        judge(&left).inspect_err(|why| tracing::debug!("traps tried {means}: {why}: {left:x?}"))
    }
}

/// Lets it run until it says that it has done everything.
fn go_through(vcpu: &mut VcpuRun, traps: &Traps, ended: &Sender<()>) -> Result<(), String> {
    let mut vcpu = vcpu.attach();
    // Nobody asks how often it left.
    let exits = ExitCounters::default();
    let mut run = || {
        for _ in 0..EXITS {
            traps.enter(0);
            let exit = vcpu.run();
            traps.leave(0);
            match exit.map_err(|error| format!("KVM_RUN: {error}"))? {
                VmExit::Trapped => match traps.trapped(0, &mut vcpu, &exits) {
                    Ok(After::GoOn) => {}
                    Ok(After::Serve { .. }) => {
                        return Err("a step left for a device that is not there".into());
                    }
                    Err(stop) => return Err(format!("{stop:?}")),
                },
                VmExit::PortOut { port: DONE_PORT, .. } => return Ok(()),
                exit => return Err(format!("it ended with {exit:?}")),
            }
        }
        Err(format!("it left the guest more than {EXITS} times"))
    };
    let result = run();
    // Nobody waits any more if it took too long.
    let _ = ended.send(());
    result
}
