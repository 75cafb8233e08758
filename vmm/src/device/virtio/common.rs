//! The common configuration structure (VIRTIO 1.2, 4.1.4.3): feature negotiation, device status, queues.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

use super::interrupts::Interrupts;

/// Length of the structure up to `queue_notify_data`; `queue_reset` needs a feature that is not offered.
pub(super) const LEN: usize = 0x3a;

const STATUS_MASK: u8 = status(
    VIRTIO_CONFIG_S_ACKNOWLEDGE
        | VIRTIO_CONFIG_S_DRIVER
        | VIRTIO_CONFIG_S_DRIVER_OK
        | VIRTIO_CONFIG_S_FEATURES_OK
        | VIRTIO_CONFIG_S_FAILED,
);
const DRIVER_OK: u8 = status(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = status(VIRTIO_CONFIG_S_FEATURES_OK);
/// The device met an error that only a reset mends.
pub(super) const NEEDS_RESET: u8 = status(VIRTIO_CONFIG_S_NEEDS_RESET);

const fn status(bits: u32) -> u8 {
    bits.to_le_bytes()[0]
}

/// What the driver wrote about one queue (4.1.4.3, from `queue_size` on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    /// The largest size that the device takes.
    pub(super) max: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueRegisters {
    fn new(max: u16) -> Self {
        Self { max, size: max, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }
}

/// What a write asks of the device beyond being remembered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Status 0: stop and forget.
    Reset,
    /// `DRIVER_OK`: start.
    Start,
    /// The driver broke the protocol in a way that leaves nothing to go on with.
    Fault(Misuse),
}

/// How a driver broke the protocol of the common configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misuse {
    #[error("DRIVER_OK before FEATURES_OK")]
    NoFeatures,
    #[error("queue {queue} enabled with {size} entries: it takes a power of two up to {max}")]
    QueueSize { queue: u16, size: u16, max: u16 },
}

/// The registers; the status machine is
///
/// ```text
///   0 --ACKNOWLEDGE, DRIVER--> negotiating --FEATURES_OK (if acceptable)--> setting up --DRIVER_OK--> running
///   any state --0--> 0         any state --nonsense--> DEVICE_NEEDS_RESET (kept outside, beside the rings)
/// ```
#[derive(Debug)]
pub(super) struct CommonConfig {
    offered: u64,
    /// Whether features of the device type fit each other (such as 5.1.3.1).
    consistent: fn(u64) -> bool,
    offered_select: u32,
    accepted_select: u32,
    accepted: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl CommonConfig {
    /// Registers after power-on. `VERSION_1` is offered on top of `features`, and required.
    pub(super) fn new(features: u64, consistent: fn(u64) -> bool, queue_sizes: &[u16]) -> Self {
        Self {
            offered: features | 1 << VIRTIO_F_VERSION_1,
            consistent,
            offered_select: 0,
            accepted_select: 0,
            accepted: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|&max| QueueRegisters::new(max)).collect(),
        }
    }

    /// Features that the driver accepted; settled once `FEATURES_OK` is set.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// All queues, enabled or not.
    pub(super) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Back to power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        *self = Self::new(self.offered, self.consistent, &sizes);
    }

    /// Reads; `broken` adds `DEVICE_NEEDS_RESET` to the status. Bytes beyond the structure read as zero.
    pub(super) fn read(&self, offset: usize, data: &mut [u8], interrupts: &Interrupts, broken: bool) {
        let mut image = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.offered_select.to_le_bytes());
        put(0x04, &half(self.offered, self.offered_select).to_le_bytes());
        put(0x08, &self.accepted_select.to_le_bytes());
        put(0x0c, &half(self.accepted, self.accepted_select).to_le_bytes());
        put(0x10, &interrupts.config_vector().to_le_bytes());
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(0x14, &[self.status | if broken { NEEDS_RESET } else { 0 }]);
        // 0x15, config_generation: stays 0, no device here changes its configuration.
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &interrupts.queue_vector(self.queue_select).to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            // queue_notify_off: each queue has a notification address of its own.
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
        }
        data.fill(0);
        if let Some(bytes) = image.get(offset..) {
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
    }

    /// Takes a write of one whole field, or of half of a 64-bit one (4.1.3.1); all others are ignored.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], interrupts: &Interrupts) -> Effect {
        let mut bytes = [0; 8];
        let Some(low) = bytes.get_mut(..data.len()) else { return Effect::None };
        low.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let [b0, b1, b2, b3, ..] = bytes;
        let (word, double) = (u16::from_le_bytes([b0, b1]), u32::from_le_bytes([b0, b1, b2, b3]));
        match (offset, data.len()) {
            (0x00, 4) => self.offered_select = double,
            (0x08, 4) => self.accepted_select = double,
            (0x0c, 4) => self.accept(double),
            (0x10, 2) => interrupts.set_config_vector(word),
            (0x14, 1) => return self.write_status(b0),
            (0x16, 2) => self.queue_select = word,
            (0x1a, 2) => interrupts.set_queue_vector(self.queue_select, word),
            (0x18, 2) => self.set_up(|queue| queue.size = word),
            (0x1c, 2) if word == 1 => return self.enable(),
            (0x20 | 0x24, 4) | (0x20, 8) => {
                self.set_up(|queue| insert(&mut queue.descriptors, offset, data, value));
            }
            (0x28 | 0x2c, 4) | (0x28, 8) => {
                self.set_up(|queue| insert(&mut queue.driver, offset, data, value));
            }
            (0x30 | 0x34, 4) | (0x30, 8) => {
                self.set_up(|queue| insert(&mut queue.device, offset, data, value));
            }
            _ => {}
        }
        Effect::None
    }

    fn accept(&mut self, bits: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.accepted_select {
            0 => self.accepted = (self.accepted & !0xffff_ffff) | u64::from(bits),
            1 => self.accepted = (self.accepted & 0xffff_ffff) | (u64::from(bits) << 32),
            _ => {}
        }
    }

    /// Status bits are only ever added, except by the reset (2.1.1).
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut added = value & STATUS_MASK & !self.status;
        if added & FEATURES_OK != 0 && !self.acceptable() {
            // The driver reads the status back and finds out (3.1.1, step 6).
            added &= !FEATURES_OK;
        }
        self.status |= added;
        if added & DRIVER_OK == 0 {
            Effect::None
        } else if self.status & FEATURES_OK == 0 {
            Effect::Fault(Misuse::NoFeatures)
        } else {
            Effect::Start
        }
    }

    fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0
            && self.accepted & (1 << VIRTIO_F_VERSION_1) != 0
            && (self.consistent)(self.accepted)
    }

    /// Changes the selected queue, while that is allowed: between `FEATURES_OK` and `DRIVER_OK`, before the
    /// queue is enabled (4.1.4.3.2).
    fn set_up(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        if let Some(queue) =
            self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
        {
            change(queue);
        }
    }

    fn enable(&mut self) -> Effect {
        let mut effect = Effect::None;
        let number = self.queue_select;
        self.set_up(|queue| {
            if queue.size.is_power_of_two() && queue.size <= queue.max {
                queue.enabled = true;
            } else {
                effect = Effect::Fault(Misuse::QueueSize { queue: number, size: queue.size, max: queue.max });
            }
        });
        effect
    }
}

/// 32 of the 64 feature bits; there are no others.
fn half(bits: u64, select: u32) -> u32 {
    let half = match select {
        0 => bits & 0xffff_ffff,
        1 => bits >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or(0)
}

/// Writes all of a 64-bit field, or the half that `offset` (relative to an aligned field) names.
fn insert(field: &mut u64, offset: usize, data: &[u8], value: u64) {
    *field = match (data.len(), offset % 8) {
        (8, _) => value,
        (_, 0) => (*field & !0xffff_ffff) | value,
        _ => (*field & 0xffff_ffff) | (value << 32),
    };
}
