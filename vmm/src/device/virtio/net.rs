//! The network device (VIRTIO 1.2, 5.1), on a tap.
//!
//! One receive and one transmit queue, no control queue. Frames carry the 12-byte header of 5.1.6, which
//! has the same layout on a tap, so the two ends negotiate checksum and segmentation offloads with each other
//! and the device only carries the header over.
//!
//! Backpressure: frames are read from the tap only when all those read before are in the guest, and the tap
//! is not even waited for while the guest has no buffers. The host's queue of the tap then fills, and the host
//! drops. A frame that the guest sends and the host refuses is lost, as on a wire.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device_type::{Description, DeviceType, Progress};
use super::frames::{FRAME_MAX, FRAMES, Frames};
use super::ring::{Chain, Ring, RingError, Used};
use super::tap::Offloads;
use super::{Tap, VirtioDevice, VirtioError};
use crate::config::MacAddress;
use crate::device::pci::MsiSender;
use crate::memory::{DeviceMemory, GuestMemory};

/// Length of `virtio_net_hdr` with `VERSION_1` (5.1.6), in bytes.
pub(super) const HEADER: u8 = 12;
const HEADER_LEN: usize = HEADER as usize;
/// Offset in it of `num_buffers`.
const NUM_BUFFERS: usize = 10;
/// Receive queue, transmit queue (5.1.2).
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Base class 0x02: Ethernet controller.
const CLASS: u32 = 0x02_00_00;
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A network device.
pub type NetDevice = VirtioDevice<NetCounters>;

/// What a network device counts.
#[derive(Debug, Default)]
pub struct NetCounters {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    rx_dropped: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    tx_dropped: AtomicU64,
}

/// The [`NetCounters`] at one moment. Bytes are without the virtio header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NetSnapshot {
    /// Frames given to the guest.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that the guest's buffers could not hold, or that asked for offloads it did not accept.
    pub rx_dropped: u64,
    /// Frames given to the tap.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that the tap refused, or that were no frames.
    pub tx_dropped: u64,
}

impl NetCounters {
    /// The counts now.
    pub fn snapshot(&self) -> NetSnapshot {
        NetSnapshot {
            rx_packets: self.rx_packets.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            rx_dropped: self.rx_dropped.load(Ordering::Relaxed),
            tx_packets: self.tx_packets.load(Ordering::Relaxed),
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            tx_dropped: self.tx_dropped.load(Ordering::Relaxed),
        }
    }
}

/// Makes a network device on `tap`.
pub fn net(
    tap: Tap,
    mac: MacAddress,
    memory: DeviceMemory,
    msi: Arc<dyn MsiSender>,
) -> Result<Arc<NetDevice>, VirtioError> {
    let description = Description {
        name: "virtio-net",
        type_id: u16::try_from(VIRTIO_ID_NET).unwrap_or(u16::MAX),
        class: CLASS,
        features: FEATURES,
        consistent,
        queue_sizes: QUEUE_SIZES,
        // virtio_net_config (5.1.4); what follows the address needs features that are not offered.
        config: mac.bytes().to_vec(),
    };
    let counters = Arc::new(NetCounters::default());
    let device = Net {
        tap,
        tap_gone: false,
        features: 0,
        received: Frames::new(),
        held: Vec::new(),
        outgoing: Frames::new(),
        counters: Arc::clone(&counters),
    };
    VirtioDevice::new(description, device, counters, memory, msi)
}

/// Segmentation needs checksums (5.1.3.1).
fn consistent(features: u64) -> bool {
    let has = |bit: u32| features & (1 << bit) != 0;
    let host_tso = has(VIRTIO_NET_F_HOST_TSO4) || has(VIRTIO_NET_F_HOST_TSO6);
    let guest_tso = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
    (!host_tso || has(VIRTIO_NET_F_CSUM)) && (!guest_tso || has(VIRTIO_NET_F_GUEST_CSUM))
}

/// The worker's part.
#[derive(Debug)]
struct Net {
    tap: Tap,
    /// The interface was removed under us.
    tap_gone: bool,
    /// What the driver accepted.
    features: u64,
    /// Read from the tap, not yet in the guest.
    received: Frames,
    /// Receive buffers taken from the ring and not used yet: too short for the frame that waits.
    held: Vec<Chain>,
    /// Taken from the guest, not yet written to the tap.
    outgoing: Frames,
    counters: Arc<NetCounters>,
}

impl DeviceType for Net {
    fn source(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        self.stop();
        self.features = features;
        let offloads = Offloads {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: self.has(VIRTIO_NET_F_GUEST_TSO6),
        };
        let set = self.tap.set_offloads(offloads);
        match set {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                self.lose_tap(&error);
                Ok(())
            }
            set => set,
        }
    }

    fn stop(&mut self) {
        self.received.clear();
        self.held.clear();
        self.outgoing.clear();
    }

    fn fill(&mut self) -> io::Result<()> {
        if !self.received.is_empty() || self.tap_gone {
            return Ok(());
        }
        let mut skipped = 0;
        while !self.received.is_full() {
            match self.tap.receive(self.received.room()) {
                Ok(len) if self.suits_driver(len) => self.received.push(len),
                Ok(_) => {
                    self.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
                    skipped += 1;
                    if skipped >= FRAMES {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lose_tap(&error);
                    break;
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<Progress, RingError> {
        let [receive, transmit] = rings else { return Ok(Progress::IDLE) };
        let more_to_send = self.transmit(transmit, memory)?;
        self.receive(receive, memory)?;
        if self.received.is_empty() {
            receive.disable_notification(memory)?;
            return Ok(Progress { again: more_to_send, watch_source: !self.tap_gone });
        }
        let more_buffers = receive.enable_notification(memory)?;
        Ok(Progress { again: more_to_send || more_buffers, watch_source: false })
    }

    fn drain(&mut self) {
        while let Some(frame) = self.outgoing.front() {
            let len = frame.len();
            match self.tap.send(frame) {
                Ok(_) => {
                    self.counters.tx_packets.fetch_add(1, Ordering::Relaxed);
                    self.counters.tx_bytes.fetch_add((len - HEADER_LEN) as u64, Ordering::Relaxed);
                }
                // Also what the host makes of a header full of nonsense.
                Err(_) => {
                    self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.outgoing.pop();
        }
    }
}

impl Net {
    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// Whether the frame of `len` bytes just read is one, and needs no more of the driver than it accepted:
    /// what waited in the tap may have been queued for the driver before. Without `GUEST_CSUM` the flags are
    /// cleared (5.1.6.4.1).
    fn suits_driver(&mut self, len: usize) -> bool {
        let Some(&[flags, segmentation, ..]) = self.received.room().get(..HEADER_LEN) else { return false };
        let feature = match u32::from(segmentation) {
            VIRTIO_NET_HDR_GSO_NONE if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 => None,
            VIRTIO_NET_HDR_GSO_NONE => Some(VIRTIO_NET_F_GUEST_CSUM),
            VIRTIO_NET_HDR_GSO_TCPV4 => Some(VIRTIO_NET_F_GUEST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => Some(VIRTIO_NET_F_GUEST_TSO6),
            _ => return false,
        };
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            self.received.room()[0] = 0;
        }
        len > HEADER_LEN && feature.is_none_or(|feature| self.has(feature))
    }

    /// The interface was removed: the guest goes on, offline. What it sends is dropped.
    fn lose_tap(&mut self, error: &io::Error) {
        if !self.tap_gone {
            tracing::error!(tap = self.tap.name(), %error, "the tap is gone; the guest is offline");
        }
        self.tap_gone = true;
    }

    /// Takes frames from the guest; `true` when it has more.
    fn transmit(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<bool, RingError> {
        ring.disable_notification(memory)?;
        let mut used = Vec::with_capacity(FRAMES);
        let mut empty = false;
        while used.len() < FRAMES && !self.outgoing.is_full() {
            let Some(chain) = ring.pop(memory)? else {
                empty = true;
                break;
            };
            let len = chain.readable_len();
            if (HEADER_LEN + 1..=FRAME_MAX).contains(&len) {
                chain.read(memory, &mut self.outgoing.room()[..len])?;
                self.outgoing.push(len);
            } else {
                self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
            }
            used.push(chain.used(0));
        }
        ring.complete(memory, &used)?;
        if empty { ring.enable_notification(memory) } else { Ok(true) }
    }

    /// Gives frames to the guest, until there are none, it has no buffers for the next, or as many were taken
    /// as the ring has entries.
    fn receive(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        let mut budget = ring.size();
        while let Some(frame) = self.received.front() {
            let held = held_len(&self.held);
            if held >= frame.len() {
                let used = scatter(&mut self.held, memory, frame)?;
                ring.complete(memory, &used)?;
                self.counters.rx_packets.fetch_add(1, Ordering::Relaxed);
                self.counters.rx_bytes.fetch_add((frame.len() - HEADER_LEN) as u64, Ordering::Relaxed);
                self.received.pop();
            } else if !self.has(VIRTIO_NET_F_MRG_RXBUF) && !self.held.is_empty() {
                // The buffer waits for a shorter frame.
                self.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
                self.received.pop();
            } else if self.held.len() >= ring.size() {
                return Err(RingError::Buffers { held: self.held.len() });
            } else if budget == 0 {
                break;
            } else if let Some(chain) = ring.pop(memory)? {
                budget -= 1;
                self.held.push(chain);
            } else {
                break;
            }
        }
        Ok(())
    }
}

fn held_len(held: &[Chain]) -> usize {
    held.iter().map(Chain::writable_len).sum()
}

/// Writes `frame` over as many of the `held` buffers as it takes, and takes those out.
fn scatter(held: &mut Vec<Chain>, memory: &GuestMemory, frame: &mut [u8]) -> Result<Vec<Used>, RingError> {
    let mut count = 0;
    let mut room = 0;
    for chain in held.iter() {
        if room >= frame.len() {
            break;
        }
        room += chain.writable_len();
        count += 1;
    }
    // 1 also without MRG_RXBUF (5.1.6.4.1); a tap leaves the field alone.
    let buffers = u16::try_from(count).unwrap_or(u16::MAX);
    frame[NUM_BUFFERS..HEADER_LEN].copy_from_slice(&buffers.to_le_bytes());
    let mut rest: &[u8] = frame;
    let mut used = Vec::with_capacity(count);
    for chain in held.drain(..count) {
        let written = chain.write(memory, rest)?;
        rest = &rest[written..];
        used.push(chain.used(written));
    }
    Ok(used)
}
