//! Getting a vCPU out of the guest.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};
use std::{io, ptr};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null in every other thread.
    pub(super) static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that gets a vCPU out of the guest: the first real-time signal, used by nothing else here.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes [`kick_signal`] set `immediate_exit` of the vCPU whose thread it hits.
///
/// The handler, not the sender, sets the flag: wherever the signal lands between the thread's last look at
/// its requests and `KVM_RUN`, the next `KVM_RUN` returns at once (KVM api.rst 5, `immediate_exit`).
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let flag = IMMEDIATE_EXIT.with(Cell::get);
        if !flag.is_null() {
            // SAFETY: the pointer is set only while the `VcpuRun` that owns the mapping is attached to this
            // very thread; a byte is written whole. Nothing here allocates or locks.
            unsafe { flag.write_volatile(1) };
        }
    }
    Ok(register_signal_handler(kick_signal(), on_kick)?)
}

/// Gets one vCPU out of the guest, from any thread.
#[derive(Debug, Default)]
pub struct Kick(Mutex<Option<libc::pthread_t>>);

impl Kick {
    /// Sends [`kick_signal`] to the thread that runs the vCPU, if one does.
    pub fn send(&self) -> io::Result<()> {
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(thread) = *thread else { return Ok(()) };
        // SAFETY: the thread is there: it takes itself out of here, under the lock, before it ends.
        let error = unsafe { libc::pthread_kill(thread, kick_signal()) };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Says which thread runs the vCPU; that thread does, and takes itself out before it ends.
    pub(super) fn set(&self, thread: Option<libc::pthread_t>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }
}
