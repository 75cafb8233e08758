//! One vCPU: entering the guest, and reading why it left.

mod state;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION, KVM_RUN_X86_SMM,
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_run,
};
use kvm_ioctls::{Error as KvmErrno, VcpuFd};
use update_server::x86::stub;

use super::kick::{IMMEDIATE_EXIT, Kick};
use super::kvm::GuestVm;
use crate::vcpu::{TOMBSTONE_PORT, VmExit};

pub use state::VcpuState;

/// The port that stubs write to.
const STUBS: u16 = stub::PORT as u16;

/// A vCPU and the machine that it belongs to.
#[derive(Debug)]
pub struct VcpuRun {
    fd: VcpuFd,
    vm: Arc<GuestVm>,
    kick: Arc<Kick>,
}

impl VcpuRun {
    pub(super) fn new(fd: VcpuFd, vm: Arc<GuestVm>) -> Self {
        Self { fd, vm, kick: Arc::default() }
    }

    /// The descriptor, for register access.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// What gets it out of the guest.
    pub fn kick(&self) -> &Arc<Kick> {
        &self.kick
    }

    /// A second way to this vCPU, for others than its thread.
    pub fn peer(&self) -> io::Result<VcpuPeer> {
        // SAFETY: the descriptor is this vCPU's own and open; the call looks at nothing else.
        let copy = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: `copy` is a descriptor of a vCPU of this machine that nobody else owns; the new object does.
        let fd = unsafe { self.vm.fd().create_vcpu_from_rawfd(copy.into_raw_fd()) };
        Ok(VcpuPeer { fd: fd?, _vm: Arc::clone(&self.vm) })
    }

    /// The machine.
    pub fn vm(&self) -> &Arc<GuestVm> {
        &self.vm
    }

    /// Lets kicks of the calling thread reach this vCPU until the returned guard is dropped.
    pub fn attach(&mut self) -> Attached<'_> {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: `run` points to the mapped `kvm_run`; only an address is computed.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        IMMEDIATE_EXIT.with(|cell| cell.set(flag));
        // SAFETY: the call only names the calling thread.
        self.kick.set(Some(unsafe { libc::pthread_self() }));
        Attached { vcpu: self, left: 0 }
    }
}

/// A vCPU in the hands of somebody who does not run it: registers, while its thread is parked. While it runs, KVM makes
/// such a call wait.
#[derive(Debug)]
pub struct VcpuPeer {
    fd: VcpuFd,
    /// The descriptor does not keep the machine's memory mapped.
    _vm: Arc<GuestVm>,
}

impl VcpuPeer {
    /// The descriptor, for register access.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }
}

/// A vCPU in the hands of the thread that runs it.
#[derive(Debug)]
pub struct Attached<'a> {
    vcpu: &'a mut VcpuRun,
    /// What of its state KVM has left in shared memory: `KVM_SYNC_X86_*`.
    left: u32,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.vcpu.kick.set(None);
        IMMEDIATE_EXIT.with(|cell| cell.set(ptr::null_mut()));
    }
}

impl Attached<'_> {
    /// The descriptor, for register access.
    pub fn fd(&self) -> &VcpuFd {
        &self.vcpu.fd
    }

    /// Runs the guest until it needs something; the previous exit's data is handed over first.
    ///
    /// An error is KVM's own; a signal or kick is [`VmExit::Interrupted`].
    pub fn run(&mut self) -> io::Result<VmExit<'_>> {
        let state = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
        self.leave(if self.vcpu.vm.traps() { state } else { 0 });
        self.enter(false)
    }

    /// The same while the vCPU is made to carry out one instruction, perhaps in the second view.
    pub fn step(&mut self) -> io::Result<VmExit<'_>> {
        self.leave(KVM_SYNC_X86_REGS | KVM_SYNC_X86_EVENTS);
        self.enter(true)
    }

    fn enter(&mut self, in_second_view: bool) -> io::Result<VmExit<'_>> {
        // A stale reason must not be taken for this run's: KVM leaves it alone when it fails (seen on 6.1).
        self.vcpu.fd.get_kvm_run().exit_reason = 0;
        let result = self.vcpu.fd.run().map(drop).map_err(KvmErrno::errno);
        // Before anything else: where the guest is matters more than why it left, and KVM may report no more
        // than EIO of a machine that it gave up on its way there.
        if !in_second_view && self.in_smm() {
            return Ok(VmExit::SystemManagement);
        }
        match result {
            Ok(()) => Ok(self.decode()),
            Err(libc::EINTR) => {
                self.clear_immediate_exit();
                Ok(VmExit::Interrupted)
            }
            // A vCPU that waits for its first INIT or SIPI (KVM api.rst 4.10).
            Err(libc::EAGAIN) => Ok(VmExit::Interrupted),
            Err(libc::EFAULT) => Ok(VmExit::Trapped),
            Err(errno) => {
                self.left = 0;
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    /// Completes the I/O of the last exit without running the guest (KVM api.rst 5, `immediate_exit`).
    ///
    /// [`VmExit::Interrupted`] means that nothing is pending: registers can be read. Anything else is a
    /// further exit of the same instruction, to be served before this is called again.
    pub fn drain(&mut self) -> io::Result<VmExit<'_>> {
        self.leave(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
        self.vcpu.fd.set_kvm_immediate_exit(1);
        self.enter(false)
    }

    /// What the last exit was, once more; it is served as any other.
    pub fn last_exit(&mut self) -> VmExit<'_> {
        self.decode()
    }

    /// What KVM is to leave in the memory that it shares with this VMM (KVM api.rst 6.74, `KVM_CAP_SYNC_REGS`).
    fn leave(&mut self, parts: u32) {
        self.left = if self.vcpu.vm.has_sync_regs() { parts } else { 0 };
        self.vcpu.fd.get_kvm_run().kvm_valid_regs = u64::from(self.left);
    }

    /// Puts the answer to a [`VmExit::Hypercall`] or [`VmExit::Tombstone`], which was the last exit, where the guest gets it on the
    /// next entry.
    pub fn answer(&mut self, value: u32) {
        if let VmExit::PortIn { data, .. } = self.decode_io()
            && data.len() == size_of_val(&value)
        {
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Lets the guest see a general protection fault instead of what a [`VmExit::MsrWrite`], which was the last exit, asked for.
    pub fn refuse_msr(&mut self) {
        let run = self.vcpu.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_X86_WRMSR {
            // SAFETY: `exit_reason` says that `msr` is the valid member of the union.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            msr.error = 1;
        }
    }

    /// Whether the guest is in system management mode, which this VMM never puts it in. KVM says so at the end
    /// of each `KVM_RUN`, however that ends (KVM api.rst 5, `KVM_RUN_X86_SMM`).
    fn in_smm(&mut self) -> bool {
        self.vcpu.fd.get_kvm_run().flags & u16::try_from(KVM_RUN_X86_SMM).unwrap_or(1) != 0
    }

    fn clear_immediate_exit(&mut self) {
        self.vcpu.fd.set_kvm_immediate_exit(0);
        // The handler runs in this thread: the store must not sink below the next look at the requests, or it
        // would undo a kick that came in between.
        compiler_fence(Ordering::SeqCst);
    }

    /// What an exit for a port asks for; of any other exit it is [`VmExit::Unexpected`].
    fn decode_io(&mut self) -> VmExit<'_> {
        let size = self.vcpu.vm.fd().run_size();
        let run = self.vcpu.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_IO {
            return VmExit::Unexpected { reason: run.exit_reason };
        }
        // SAFETY: `exit_reason` says that `io` is the valid member of the union.
        let io = unsafe { run.__bindgen_anon_1.io };
        let unit = usize::from(io.size);
        let len = unit * io.count as usize;
        let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        if unit == 0 || offset.checked_add(len).is_none_or(|end| end > size) {
            return VmExit::Unexpected { reason: KVM_EXIT_IO };
        }
        let base: *mut u8 = ptr::from_mut(run).cast();
        // SAFETY: the range was just checked to lie in the mapping of `size` bytes.
        let start = unsafe { base.add(offset) };
        // SAFETY: as above; the borrow of `self` keeps the mapping and excludes KVM_RUN.
        let data = unsafe { std::slice::from_raw_parts_mut(start, len) };
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            VmExit::PortIn { port: io.port, size: unit, data }
        } else {
            VmExit::PortOut { port: io.port, size: unit, data }
        }
    }

    fn decode(&mut self) -> VmExit<'_> {
        if self.vcpu.fd.get_kvm_run().exit_reason == KVM_EXIT_IO {
            return match self.decode_io() {
                VmExit::PortIn { port: lucos_abi::PORT, size: 4, data: [_, _, _, _] } => VmExit::Hypercall,
                VmExit::PortIn { port: TOMBSTONE_PORT, size: 4, data: [_, _, _, _] } => VmExit::Tombstone,
                VmExit::PortOut { port: STUBS, size: 1, data: &[value] } => VmExit::Stub { value },
                other => other,
            };
        }
        let leaves_unemulated = self.vcpu.vm.leaves_unemulated();
        let run = self.vcpu.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_MMIO => {
                // SAFETY: `exit_reason` says that `mmio` is the valid member of the union.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                let len = (mmio.len as usize).min(mmio.data.len());
                let data = &mut mmio.data[..len];
                if mmio.is_write == 0 {
                    VmExit::MmioRead { address: mmio.phys_addr, data }
                } else {
                    VmExit::MmioWrite { address: mmio.phys_addr, data }
                }
            }
            KVM_EXIT_DEBUG => {
                // SAFETY: `exit_reason` says that `debug` is the valid member of the union.
                let debug = unsafe { run.__bindgen_anon_1.debug };
                VmExit::Stepped { dr6: debug.arch.dr6 }
            }
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: `exit_reason` says that `msr` is the valid member of the union.
                let msr = unsafe { &mut run.__bindgen_anon_1.msr };
                // The guest sees no exception, unless whoever serves this says so.
                msr.error = 0;
                VmExit::MsrWrite { index: msr.index, value: msr.data }
            }
            KVM_EXIT_SHUTDOWN => VmExit::Shutdown,
            KVM_EXIT_INTR => VmExit::Interrupted,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: `exit_reason` says that `fail_entry` is the valid member of the union.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                VmExit::FailEntry { reason: entry.hardware_entry_failure_reason }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: `exit_reason` says that `internal` is the valid member of the union.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                let count = (internal.ndata as usize).min(internal.data.len());
                let data = internal.data[..count].to_vec();
                if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && leaves_unemulated {
                    VmExit::NotEmulated { data }
                } else {
                    VmExit::InternalError { suberror: internal.suberror, data }
                }
            }
            reason => VmExit::Unexpected { reason },
        }
    }
}
