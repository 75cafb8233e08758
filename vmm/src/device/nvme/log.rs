//! Log pages (5.14): the mandatory three.

use super::identify::TEMPERATURE;
use super::shared::Shared;
use super::spec::{Command, MAX_TRANSFER, Status};

/// Log page identifiers (figure 191).
const ERRORS: u16 = 0x01;
const HEALTH: u16 = 0x02;
const FIRMWARE: u16 = 0x03;
/// One data unit of the health log: a thousand times 512 bytes (figure 194).
const DATA_UNIT: u64 = 512 * 1000;

/// The page that GET LOG PAGE asks for, from the offset on, and the size of the guest's buffer.
pub(super) fn page(shared: &Shared, command: &Command) -> Result<(Vec<u8>, u64), Status> {
    let dwords = u64::from(command.high(10)) | (u64::from(command.low(11)) << 16);
    let len = (dwords + 1) * 4;
    let offset = u64::from(command.dword(12)) | (u64::from(command.dword(13)) << 32);
    if len > MAX_TRANSFER || !offset.is_multiple_of(4) {
        return Err(Status::INVALID_FIELD);
    }
    let page = match command.low(10) & 0xff {
        // No error has been logged: an entry with error count zero.
        ERRORS => vec![0; 64],
        HEALTH => health(shared),
        FIRMWARE => firmware(),
        _ => return Err(Status::LOG_PAGE),
    };
    // Behind the end of the page nothing is returned (5.14: undefined).
    let start = usize::try_from(offset).ok().filter(|&start| start <= page.len());
    let start = start.ok_or(Status::INVALID_FIELD)?;
    let end = usize::try_from(len).map_or(page.len(), |len| (start + len).min(page.len()));
    Ok((page[start..end].to_vec(), len))
}

/// SMART / Health Information (figure 194).
fn health(shared: &Shared) -> Vec<u8> {
    let counters = shared.counters.snapshot();
    let mut page = vec![0; 512];
    page[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
    // Available spare and its threshold, in percent.
    page[3..5].copy_from_slice(&[100, 10]);
    let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(32, counters.read_bytes.div_ceil(DATA_UNIT));
    put(48, counters.written_bytes.div_ceil(DATA_UNIT));
    put(64, counters.reads);
    put(80, counters.writes);
    page
}

/// Firmware Slot Information (figure 195): slot 1 is active.
fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    let revision = env!("CARGO_PKG_VERSION").as_bytes();
    page[8..16].fill(b' ');
    page[8..16].iter_mut().zip(revision).for_each(|(to, &from)| *to = from);
    page
}
