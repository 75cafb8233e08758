//! The data structures that IDENTIFY returns (5.15).

use super::shared::Shared;
use super::spec::{
    ALL_NAMESPACES, BLOCK_SHIFT, CQE_SHIFT, Command, MDTS, NAMESPACE, SQE_SHIFT, Status, VERSION,
};

/// Size of each of them.
pub(super) const SIZE: usize = 4096;
/// Abort Command Limit, and Asynchronous Event Request Limit, zero-based.
pub(super) const EVENT_LIMIT: u8 = 3;
/// Thresholds of the composite temperature, in kelvins, and what a disk made of a file has: room
/// temperature.
pub(super) const WARNING_TEMPERATURE: u16 = 343;
const CRITICAL_TEMPERATURE: u16 = 363;
pub(super) const TEMPERATURE: u16 = 296;

/// Answers IDENTIFY by its Controller or Namespace Structure value.
pub(super) fn identify(shared: &Shared, command: &Command) -> Result<Vec<u8>, Status> {
    const NAMESPACE_DATA: u16 = 0x00;
    const CONTROLLER_DATA: u16 = 0x01;
    const ACTIVE_NAMESPACES: u16 = 0x02;
    const NAMESPACE_DESCRIPTORS: u16 = 0x03;
    match command.low(10) & 0xff {
        NAMESPACE_DATA => match command.namespace {
            NAMESPACE => Ok(namespace(shared)),
            // Not an active namespace: zeroes (5.15.2.1). The broadcast value would ask for what all have in
            // common, with namespace management only.
            0 | ALL_NAMESPACES => Err(Status::INVALID_NAMESPACE),
            _ => Ok(vec![0; SIZE]),
        },
        CONTROLLER_DATA => Ok(controller(shared)),
        // Identifiers greater than the one given, which may not be one of the last two (5.15.2.3).
        ACTIVE_NAMESPACES if command.namespace >= ALL_NAMESPACES - 1 => Err(Status::INVALID_NAMESPACE),
        ACTIVE_NAMESPACES => {
            let mut data = Page::new();
            if command.namespace < NAMESPACE {
                data.put(0, &NAMESPACE.to_le_bytes());
            }
            Ok(data.0)
        }
        NAMESPACE_DESCRIPTORS if command.namespace == NAMESPACE => {
            let mut data = Page::new();
            // Type 3, a UUID, of 16 bytes (figure 249).
            data.put(0, &[3, 16]);
            data.put(4, &uuid("namespace", &shared.serial));
            Ok(data.0)
        }
        NAMESPACE_DESCRIPTORS => Err(Status::INVALID_NAMESPACE),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Identify Controller (figure 247). What is not mentioned is zero: absent.
fn controller(shared: &Shared) -> Vec<u8> {
    let mut data = Page::new();
    data.put(0, &super::VENDOR.to_le_bytes());
    data.put(2, &super::VENDOR.to_le_bytes());
    data.put(4, &padded::<20>(&shared.serial));
    data.put(24, &padded::<40>("lucos NVMe disk"));
    data.put(64, &padded::<8>(env!("CARGO_PKG_VERSION")));
    data.put(77, &[MDTS]);
    data.put(80, &VERSION.to_le_bytes());
    // RTD3 Entry Latency, in microseconds: how long a shutdown may take. Linux waits that long, 60 s at most,
    // and 5 s without it, which the flush of a large image may exceed.
    data.put(88, &60_000_000_u32.to_le_bytes());
    // CNTRLTYPE: I/O controller.
    data.put(111, &[1]);
    // OACS: Doorbell Buffer Config.
    data.put(256, &(1_u16 << 8).to_le_bytes());
    data.put(258, &[EVENT_LIMIT, EVENT_LIMIT]);
    // FRMW: one firmware slot, read-only.
    data.put(260, &[0b11]);
    // LPA: extended data (offset and upper length) in Get Log Page.
    data.put(261, &[1 << 2]);
    data.put(266, &WARNING_TEMPERATURE.to_le_bytes());
    data.put(268, &CRITICAL_TEMPERATURE.to_le_bytes());
    let shift = |shift: u32| u8::try_from(shift * 0x11).unwrap_or(0);
    data.put(512, &[shift(SQE_SHIFT), shift(CQE_SHIFT)]);
    data.put(516, &1_u32.to_le_bytes());
    // ONCS: Dataset Management, Write Zeroes.
    data.put(520, &(1_u16 << 2 | 1 << 3).to_le_bytes());
    // VWC: present; FLUSH accepts the broadcast namespace.
    data.put(525, &[0b111]);
    data.put(768, subnqn(&shared.serial).as_bytes());
    // Power state 0: 0.01 W units, something.
    data.put(2048, &100_u16.to_le_bytes());
    data.0
}

/// Identify Namespace (figure 245).
fn namespace(shared: &Shared) -> Vec<u8> {
    let mut data = Page::new();
    let blocks = shared.disk.blocks().to_le_bytes();
    // NSZE, NCAP, NUSE: no thin provisioning is claimed.
    for at in [0, 8, 16] {
        data.put(at, &blocks);
    }
    // DLFEAT: deallocated blocks read as zeroes; WRITE ZEROES may deallocate.
    data.put(33, &[0b1001]);
    // NSATTR: write-protected, by which Linux makes the block device read-only.
    data.put(99, &[u8::from(shared.disk.read_only())]);
    // LBA format 0: no metadata.
    data.put(128 + 2, &[u8::try_from(BLOCK_SHIFT).unwrap_or(0)]);
    data.0
}

struct Page(Vec<u8>);

impl Page {
    fn new() -> Self {
        Self(vec![0; SIZE])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// ASCII, padded with spaces (1.5).
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [b' '; N];
    for (byte, char) in bytes.iter_mut().zip(text.chars()) {
        *byte = u8::try_from(char).ok().filter(|byte| (0x20..0x7f).contains(byte)).unwrap_or(b'?');
    }
    bytes
}

/// The NVM subsystem's name (7.9): Linux refuses two controllers with the same one.
fn subnqn(serial: &str) -> String {
    let hex: Vec<String> = uuid("subsystem", serial).iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex[range].concat();
    let uuid = [part(0..4), part(4..6), part(6..8), part(8..10), part(10..16)].join("-");
    format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
}

/// A UUID (RFC 9562, version 8: made by a rule of our own) that is the same each time a disk is attached,
/// so that names by identifier in the guest stay: the 128-bit FNV-1a hash of what it names.
fn uuid(what: &str, serial: &str) -> [u8; 16] {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let text = ["lucos ", what, " ", serial].concat();
    let hash = text.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    let mut bytes = hash.to_be_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_the_serial_number_alone() {
        assert_eq!(subnqn("a"), subnqn("a"));
        assert_ne!(subnqn("a"), subnqn("b"));
        assert_ne!(uuid("namespace", "a"), uuid("subsystem", "a"));
        assert_eq!(subnqn("a").len(), "nqn.2014-08.org.nvmexpress:uuid:".len() + 36);
    }

    #[test]
    fn text_is_ascii_and_padded() {
        assert_eq!(&padded::<6>("a\u{e9}\n"), b"a??   ");
        assert_eq!(&padded::<2>("abc"), b"ab");
    }
}
