//! An NVMe controller (NVM Express 1.4) with one namespace, backed by a raw image file.
//!
//! NVMe because it is the one disk driver built into Debian's cloud kernels: the guest boots without an
//! initramfs. What Linux asks of a controller, `drivers/nvme/host` in 6.1 and 6.12 says.
//!
//! | thread | does |
//! |---|---|
//! | vCPU threads | registers and doorbells: store the value, wake a worker, go on |
//! | controller thread | enable, reset, shutdown, the admin queue ([`admin`]) |
//! | one worker for each I/O submission queue | transfers and their completions ([`io`]) |
//!
//! A reset, too, is only asked for by the vCPU: the guest sees CSTS.RDY turn 0 once every worker has ended,
//! and from then on nothing of the old life touches its memory.

mod admin;
mod bell;
mod counters;
mod disk;
mod doorbell;
mod features;
mod identify;
mod io;
mod log;
mod prp;
mod queue;
mod regs;
mod shared;
mod spec;
#[cfg(test)]
mod tests;

pub use counters::DiskCounters;
pub use disk::{Disk, DiskError};

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use self::admin::Admin;
use self::regs::Order;
use self::shared::Shared;
use super::pci::{ConfigSpace, Identity, MsiSender, Msix, PciDevice};
use crate::device::STACK;
use crate::memory::DeviceMemory;

/// A vendor ID that the PCI-SIG has given to nobody ("lu"): Linux binds by class, and no quirk meant for
/// somebody's hardware applies.
const VENDOR: u16 = 0x6c75;
const DEVICE: u16 = 0x0001;
/// Mass storage, non-volatile memory, NVMe I/O controller.
const CLASS: u32 = 0x01_08_02;
/// BAR 0: a page each of registers, doorbells (3.1: from 0x1000), MSI-X table and pending bits.
const BAR: u8 = 0;
const BAR_LEN: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PENDING: u32 = 0x3000;
/// Most I/O queues: each has a vector, the admin queue has one, and the table's page holds 256.
pub const MAX_QUEUES: u16 = 255;
/// Message Control in the MSI-X capability (PCI Local Bus 3.0, 6.8.2.3).
const MSIX_CONTROL: usize = 2;

/// Why a controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The host gave no thread.
    #[error("cannot start the thread of the NVMe controller for {disk}")]
    Thread {
        /// The image's path.
        disk: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The controller as a PCI function.
///
/// Dropping it ends its threads, completing the command under way. They may be waiting at the gate, so it
/// has to be open then.
pub struct NvmeController {
    shared: Arc<Shared>,
    msix: Arc<Msix>,
    msix_capability: usize,
    config: Mutex<ConfigSpace>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for NvmeController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeController").field("disk", &self.shared.disk.path()).finish_non_exhaustive()
    }
}

impl NvmeController {
    /// A controller for `disk` with up to `queues` I/O queues (one for each vCPU is best; 1 to
    /// [`MAX_QUEUES`], which other values are brought to).
    ///
    /// A [`Disk`] given as an `Arc` stays open, and locked, for the controller after this one, when the guest
    /// resets and everything else is made anew.
    ///
    /// `serial` is what the guest sees, 20 ASCII characters of it. It must differ between the disks of one
    /// guest: Linux refuses a second controller of the same name.
    pub fn new(
        disk: impl Into<Arc<Disk>>,
        memory: DeviceMemory,
        msi: Arc<dyn MsiSender>,
        queues: u16,
        serial: &str,
    ) -> Result<Arc<Self>, NvmeError> {
        let queues = queues.clamp(1, MAX_QUEUES);
        let msix = Msix::new(queues + 1, msi);
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE,
            class: CLASS,
            revision: 0,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
        });
        config.add_bar(BAR, BAR_LEN);
        let msix_capability = msix.add_capability(&mut config, BAR, MSIX_TABLE, MSIX_PENDING);
        let shared = Arc::new(Shared::new(disk.into(), serial.to_owned(), queues, memory, Arc::clone(&msix)));
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("nvme-admin".into()).stack_size(STACK).spawn(move || run(&shared))
        };
        let thread = thread
            .map_err(|source| NvmeError::Thread { disk: shared.disk.path().display().to_string(), source })?;
        Ok(Arc::new(Self { shared, msix, msix_capability, config: Mutex::new(config), thread: Some(thread) }))
    }

    /// What the disk has done so far.
    pub fn counters(&self) -> DiskCounters {
        self.shared.counters.snapshot()
    }

    /// The image behind the controller.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.shared.disk
    }
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        self.shared.quit();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("NVMe controller thread panicked");
        }
    }
}

impl PciDevice for NvmeController {
    fn config_space(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_written(&self) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let (control, master) = (config.read_u16(self.msix_capability + MSIX_CONTROL), config.bus_master());
        drop(config);
        self.msix.set_control(control);
        self.shared.set_bus_master(master);
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        if offset < DOORBELLS {
            let registers = self.shared.registers();
            for (at, byte) in (offset..).zip(data) {
                let [low, ..] = (registers.read(at & !7) >> ((at & 7) * 8)).to_le_bytes();
                *byte = low;
            }
        } else if offset >= MSIX_PENDING.into() {
            self.msix.read_pending(offset - u64::from(MSIX_PENDING), data);
        } else if offset >= MSIX_TABLE.into() {
            self.msix.read_table(offset - u64::from(MSIX_TABLE), data);
        } else {
            // Doorbells are write-only: the value read is not defined (3.1.24).
            data.fill(0);
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        if offset >= MSIX_PENDING.into() {
            // Read-only.
        } else if offset >= MSIX_TABLE.into() {
            self.msix.write_table(offset - u64::from(MSIX_TABLE), data);
        } else if offset.is_multiple_of(4) && data.len().is_multiple_of(4) {
            // Aligned double words only (3.1: anything else has undefined results).
            for (at, bytes) in (offset..).step_by(4).zip(data.as_chunks::<4>().0) {
                self.write_dword(at, u32::from_le_bytes(*bytes));
            }
        }
    }
}

impl NvmeController {
    fn write_dword(&self, at: u64, value: u32) {
        if at >= DOORBELLS {
            self.shared.counters.doorbell();
            self.shared.doorbells.write(at - DOORBELLS, value);
        } else if self.shared.registers().write(at, value) {
            self.shared.ring_controller();
        }
    }
}

/// The controller thread.
fn run(shared: &Arc<Shared>) {
    let Some(pair) = shared.doorbells.pair(0) else { return };
    pair.bell.attach();
    let mut admin: Option<Admin> = None;
    while !shared.quitting() {
        let order = shared.registers().order();
        let again = match order {
            Order::Reset => {
                admin.take().into_iter().for_each(Admin::stop);
                shared.registers().was_reset();
                true
            }
            Order::Enable(queues) => {
                let valid = shared.registers().configuration_is_valid();
                admin = if valid { Admin::start(shared, queues) } else { None };
                if admin.is_some() {
                    shared.registers().started();
                } else {
                    shared.fail("it was enabled with a page size, command set or admin queue it cannot have");
                }
                true
            }
            Order::ShutDown => {
                admin.take().into_iter().for_each(Admin::stop);
                if let Err(error) = shared.disk.sync()
                    && let Some(count) = shared.failed_flushes.pass()
                {
                    tracing::error!(disk = %shared.disk.path().display(), %error, count, "disk cannot flush");
                }
                shared.registers().was_shut_down();
                true
            }
            Order::Serve => match admin.as_mut().map_or(Ok(false), Admin::serve) {
                Ok(more) => more,
                Err(fault) => {
                    shared.fail(&fault.to_string());
                    true
                }
            },
            Order::Rest => false,
        };
        if !again {
            pair.bell.wait();
        }
    }
    admin.take().into_iter().for_each(Admin::stop);
}
