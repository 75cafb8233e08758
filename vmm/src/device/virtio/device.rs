//! A virtio device as a PCI function (VIRTIO 1.2, 4.1).

use std::fmt;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::VirtioError;
use super::common::{self, CommonConfig, Effect};
use super::device_type::{Description, DeviceType};
use super::interrupts::Interrupts;
use super::ring::Ring;
use super::shared::Shared;
use super::worker::Worker;
use crate::device::STACK;
use crate::device::pci::{ConfigSpace, Identity, MsiSender, Msix, PciDevice};
use crate::memory::DeviceMemory;

/// PCI vendor ID of virtio (4.1.2).
const VENDOR: u16 = 0x1af4;
/// PCI device ID of device type 0 (4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
/// Revision of a device without legacy interface (4.1.2.1).
const REVISION: u8 = 1;

/// The one BAR, and its structures on pages of their own.
const BAR: u8 = 0;
const BAR_LEN: u64 = 0x8000;
const PAGE: u32 = 0x1000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
/// Distance between the notification addresses of two queues (4.1.4.4).
const NOTIFY_STRIDE: u32 = 4;

/// Vendor-specific capability (PCI Local Bus 3.0, appendix H).
const CAPABILITY: u8 = 0x09;
/// `virtio_pci_cap.cfg_type` (4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;

/// How long [`VirtioDevice::shutdown`] waits for the worker. One that is stopped at a closed DMA gate ends
/// when that opens, and touches no guest memory then.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(200);

/// A virtio device on the PCI bus, with counters `C`. Its worker thread ends when it is dropped.
pub struct VirtioDevice<C> {
    name: &'static str,
    config_space: Mutex<ConfigSpace>,
    msix_capability: usize,
    registers: Mutex<CommonConfig>,
    device_config: Vec<u8>,
    queue_count: u32,
    shared: Arc<Shared>,
    counters: Arc<C>,
    /// Hangs up when the worker has ended.
    worker: Mutex<Receiver<()>>,
}

impl<C> fmt::Debug for VirtioDevice<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<C> VirtioDevice<C> {
    /// Makes a function of the type that `description` shows and starts its worker, which owns `device`.
    pub(super) fn new(
        description: Description,
        device: impl DeviceType,
        counters: Arc<C>,
        memory: DeviceMemory,
        msi: Arc<dyn MsiSender>,
    ) -> Result<Arc<Self>, VirtioError> {
        let Description { name, type_id, class, features, consistent, queue_sizes, config } = description;
        let queue_count = u16::try_from(queue_sizes.len()).unwrap_or(u16::MAX);
        let vectors = queue_count + 1;
        let msix = Msix::new(vectors, msi);
        let (config_space, msix_capability) = config_space(type_id, class, config.len(), queue_count, &msix);
        let interrupts = Interrupts::new(msix, vectors, queue_sizes.len());
        let wait = |source| VirtioError::Wait { device: name, source };
        let shared = Arc::new(Shared::new(memory, interrupts).map_err(wait)?);
        let (alive, ended) = mpsc::channel();
        let worker = Worker::new(name, Arc::clone(&shared), device, alive).map_err(wait)?;
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || worker.run())
            .map_err(|source| VirtioError::Thread { device: name, source })?;
        Ok(Arc::new(Self {
            name,
            config_space: Mutex::new(config_space),
            msix_capability,
            registers: Mutex::new(CommonConfig::new(features, consistent, queue_sizes)),
            device_config: config,
            queue_count: u32::from(queue_count),
            shared,
            counters,
            worker: Mutex::new(ended),
        }))
    }

    /// What the device counted so far.
    pub fn counters(&self) -> &C {
        &self.counters
    }

    /// Stops the device for good: when this returns, it accesses guest memory no more, and its worker has
    /// ended or is about to. Not for vCPU threads.
    pub fn shutdown(&self) {
        self.shared.stop();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody ever sends: this ends by the hang-up or by the time.
        let _ = worker.recv_timeout(SHUTDOWN_WAIT);
    }

    fn registers(&self) -> MutexGuard<'_, CommonConfig> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_common(&self, offset: usize, data: &[u8]) {
        let mut registers = self.registers();
        match registers.write(offset, data, &self.shared.interrupts) {
            Effect::None => {}
            Effect::Reset => {
                self.shared.reset();
                registers.reset();
            }
            Effect::Start => self.start(&registers),
            Effect::Fault(misuse) => {
                tracing::debug!(device = self.name, %misuse, "the device needs a reset");
                self.shared.fail();
            }
        }
    }

    fn start(&self, registers: &CommonConfig) {
        let features = registers.features();
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let rings: Result<Vec<Ring>, _> =
            registers.queues().iter().map(|queue| Ring::new(queue, event_idx)).collect();
        match rings {
            Ok(rings) => self.shared.start(features, rings),
            Err(fault) => {
                tracing::debug!(device = self.name, %fault, "the device needs a reset");
                self.shared.fail();
            }
        }
    }
}

impl<C> Drop for VirtioDevice<C> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl<C: Send + Sync> PciDevice for VirtioDevice<C> {
    fn config_space(&self) -> &Mutex<ConfigSpace> {
        &self.config_space
    }

    fn config_written(&self) {
        // Applied under the lock, so that of two writers at once the later is not overwritten by the earlier.
        let config = self.config_space.lock().unwrap_or_else(PoisonError::into_inner);
        // Message Control follows the ID and the next pointer.
        self.shared.interrupts.msix().set_control(config.read_u16(self.msix_capability + 2));
        self.shared.set_bus_master(config.bus_master());
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((page, offset)) = locate(offset) else { return };
        let within = u64::try_from(offset).unwrap_or(u64::MAX);
        match page {
            COMMON => {
                self.registers().read(offset, data, &self.shared.interrupts, self.shared.broken());
            }
            ISR => {
                if let (0, Some(byte)) = (offset, data.first_mut()) {
                    *byte = self.shared.interrupts.take_isr();
                }
            }
            DEVICE => {
                let bytes = self.device_config.get(offset..).unwrap_or(&[]);
                data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            }
            MSIX_TABLE => self.shared.interrupts.msix().read_table(within, data),
            MSIX_PENDING => self.shared.interrupts.msix().read_pending(within, data),
            _ => {}
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        let Some((page, offset)) = locate(offset) else { return };
        let within = u64::try_from(offset).unwrap_or(u64::MAX);
        match page {
            COMMON => self.write_common(offset, data),
            // The address names the queue; what is written repeats its number (4.1.5.2).
            NOTIFY if within < u64::from(self.queue_count * NOTIFY_STRIDE) => self.shared.notify(),
            MSIX_TABLE => self.shared.interrupts.msix().write_table(within, data),
            _ => {}
        }
    }
}

/// The page that an offset into the BAR lies on, and the offset into that.
fn locate(offset: u64) -> Option<(u32, usize)> {
    let offset = u32::try_from(offset).ok()?;
    Some((offset & !(PAGE - 1), usize::try_from(offset & (PAGE - 1)).ok()?))
}

fn config_space(
    type_id: u16,
    class: u32,
    device_config: usize,
    queues: u16,
    msix: &Msix,
) -> (ConfigSpace, usize) {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + type_id,
        class,
        revision: REVISION,
        subsystem_vendor: VENDOR,
        // Anything from 0x40 on keeps legacy drivers away (4.1.2.1).
        subsystem: DEVICE_BASE + type_id,
    });
    config.add_bar(BAR, BAR_LEN);
    let common = u32::try_from(common::LEN).unwrap_or(PAGE);
    let device = u32::try_from(device_config).unwrap_or(PAGE);
    let mut add = |cfg_type: u8, offset: u32, len: u32, extra: &[u8]| {
        // virtio_pci_cap (4.1.4) behind its first two bytes.
        let mut body = vec![0; 14];
        body[0] = u8::try_from(16 + extra.len()).unwrap_or(u8::MAX);
        body[1] = cfg_type;
        body[2] = BAR;
        body[6..10].copy_from_slice(&offset.to_le_bytes());
        body[10..14].copy_from_slice(&len.to_le_bytes());
        body.extend_from_slice(extra);
        config.add_capability(CAPABILITY, &body, &[]);
    };
    add(CFG_COMMON, COMMON, common, &[]);
    add(CFG_NOTIFY, NOTIFY, u32::from(queues) * NOTIFY_STRIDE, &NOTIFY_STRIDE.to_le_bytes());
    add(CFG_ISR, ISR, 1, &[]);
    if device > 0 {
        add(CFG_DEVICE, DEVICE, device, &[]);
    }
    let capability = msix.add_capability(&mut config, BAR, MSIX_TABLE, MSIX_PENDING);
    (config, capability)
}
