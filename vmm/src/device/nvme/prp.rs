//! Physical region pages: where in guest memory a command's data lies (4.3).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::spec::{PAGE, Status};
use crate::memory::{GuestMemory, GuestSlice};

/// Size of one PRP entry.
const ENTRY: u64 = 8;
/// PRP1 and entries that point to data are dwords apart at least (4.3).
const DATA_ALIGNMENT: u64 = 4;

/// Appends the `len` bytes that `prp1` and `prp2` describe to `slices`, in order.
///
/// Every address is the guest's claim. Work and memory are bounded by `len`, which the caller has limited:
/// each list but the first starts at a page boundary, as the specification demands, and so brings at least
/// 511 entries; a guest cannot make a chain of lists that hold nothing.
pub(super) fn map<'a>(
    memory: &'a GuestMemory,
    prp1: u64,
    prp2: u64,
    len: u64,
    slices: &mut Vec<GuestSlice<'a>>,
) -> Result<(), Status> {
    if !prp1.is_multiple_of(DATA_ALIGNMENT) {
        return Err(Status::PRP_OFFSET);
    }
    let first = len.min(PAGE - prp1 % PAGE);
    let mut gather = Gather { memory, slices, start: prp1, len: first };
    let left = len - first;
    if left > PAGE {
        follow_lists(&mut gather, prp2, left)?;
    } else if left > 0 {
        gather.page(prp2, left)?;
    }
    gather.close()
}

fn follow_lists(gather: &mut Gather<'_, '_>, list: u64, mut left: u64) -> Result<(), Status> {
    let mut list = list;
    let mut first = true;
    while left > 0 {
        // The first list may start anywhere in its page, the others only at its beginning.
        if !list.is_multiple_of(if first { ENTRY } else { PAGE }) {
            return Err(Status::PRP_OFFSET);
        }
        first = false;
        let room = (PAGE - list % PAGE) / ENTRY;
        let wanted = left.div_ceil(PAGE);
        // The last entry of a page that does not hold all that is left points to the next list.
        let (data, chained) = if wanted > room { (room - 1, true) } else { (wanted, false) };
        let mut bytes = [0; 4096];
        let count = usize::try_from((data + u64::from(chained)) * ENTRY).map_err(|_| Status::INTERNAL)?;
        let bytes = &mut bytes[..count];
        gather.memory.read_slice(bytes, GuestAddress(list)).map_err(|_| Status::DATA_TRANSFER)?;
        let mut entries = bytes.chunks_exact(8).map(|entry| {
            let mut value = [0; 8];
            value.copy_from_slice(entry);
            u64::from_le_bytes(value)
        });
        for _ in 0..data {
            let len = left.min(PAGE);
            gather.page(entries.next().unwrap_or(0), len)?;
            left -= len;
        }
        list = entries.next().unwrap_or(0);
    }
    Ok(())
}

/// Joins pages that follow each other into one slice: fewer buffers for the host kernel to walk.
struct Gather<'a, 's> {
    memory: &'a GuestMemory,
    slices: &'s mut Vec<GuestSlice<'a>>,
    start: u64,
    len: u64,
}

impl Gather<'_, '_> {
    fn page(&mut self, address: u64, len: u64) -> Result<(), Status> {
        if !address.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET);
        }
        if self.start.checked_add(self.len) == Some(address) {
            self.len += len;
        } else {
            self.close()?;
            (self.start, self.len) = (address, len);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Status> {
        let len = usize::try_from(self.len).map_err(|_| Status::DATA_TRANSFER)?;
        let slice =
            self.memory.get_slice(GuestAddress(self.start), len).map_err(|_| Status::DATA_TRANSFER)?;
        self.slices.push(slice);
        Ok(())
    }
}

/// Copies `data` into the slices, as far as they reach.
pub(super) fn scatter(slices: &[GuestSlice<'_>], data: &[u8]) {
    let mut rest = data;
    for slice in slices {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
    }
}

/// Copies the bytes of the slices into `data`, as far as they reach.
pub(super) fn gather(slices: &[GuestSlice<'_>], data: &mut [u8]) {
    let mut at = 0;
    for slice in slices {
        at += slice.copy_to(&mut data[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    const LIST: u64 = 0x10_0000;

    fn layout(ram: &GuestRam, prp1: u64, prp2: u64, len: u64) -> Result<Vec<usize>, Status> {
        let mut slices = Vec::new();
        map(ram.memory(), prp1, prp2, len, &mut slices)?;
        Ok(slices.iter().map(vm_memory::VolatileSlice::len).collect())
    }

    fn list(ram: &GuestRam, at: u64, entries: &[u64]) {
        for (index, entry) in (0..).zip(entries) {
            ram.memory().write_obj(*entry, GuestAddress(at + index * 8)).unwrap();
        }
    }

    #[test]
    fn small_transfers_need_no_list() {
        let ram = GuestRam::new(2 << 20).unwrap();
        assert_eq!(layout(&ram, 0x1000, 0xdead, 512), Ok(vec![512]));
        assert_eq!(layout(&ram, 0x1f00, 0x5000, 512), Ok(vec![256, 256]));
        assert_eq!(layout(&ram, 0x1f00, 0x2000, 512), Ok(vec![512]));
        assert_eq!(layout(&ram, 0x1000, 0x5000, 8192), Ok(vec![4096, 4096]));
    }

    #[test]
    fn lists_are_followed_and_neighbours_joined() {
        let ram = GuestRam::new(2 << 20).unwrap();
        list(&ram, LIST, &[0x2000, 0x3000, 0x7000]);
        assert_eq!(layout(&ram, 0x1000, LIST, 4 << 12), Ok(vec![0x3000, 0x1000]));
        // A list that starts with the last two entries of its page continues in another one.
        list(&ram, LIST + 4080, &[0x9000, LIST + 0x1000]);
        list(&ram, LIST + 0x1000, &[0xb000, 0xc000]);
        assert_eq!(layout(&ram, 0x1800, LIST + 4080, 3 << 12), Ok(vec![0x800, 0x1000, 0x1800]));
    }

    #[test]
    fn addresses_that_are_no_ram_or_unaligned_are_refused() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let end = 2_u64 << 20;
        assert_eq!(layout(&ram, 0x1002, 0, 512), Err(Status::PRP_OFFSET));
        assert_eq!(layout(&ram, 0x1f00, 0x5200, 512), Err(Status::PRP_OFFSET));
        assert_eq!(layout(&ram, end - 256, end, 512), Err(Status::DATA_TRANSFER));
        assert_eq!(layout(&ram, 0xfee0_0000, 0, 512), Err(Status::DATA_TRANSFER));
        assert_eq!(layout(&ram, u64::MAX - 3, 0, 512), Err(Status::DATA_TRANSFER));
        assert_eq!(layout(&ram, u64::MAX - 4095, 0, 8192), Err(Status::DATA_TRANSFER));
        assert_eq!(layout(&ram, 0x1000, LIST + 4, 4 << 12), Err(Status::PRP_OFFSET));
        assert_eq!(layout(&ram, 0x1000, end, 4 << 12), Err(Status::DATA_TRANSFER));
        list(&ram, LIST, &[0x2000, end, 0x7000]);
        assert_eq!(layout(&ram, 0x1000, LIST, 4 << 12), Err(Status::DATA_TRANSFER));
    }

    #[test]
    fn a_chain_of_empty_lists_ends() {
        let ram = GuestRam::new(2 << 20).unwrap();
        // The last slot of a page, pointing to itself: not aligned, so refused at the second step.
        list(&ram, LIST + 4088, &[LIST + 4088]);
        assert_eq!(layout(&ram, 0x1000, LIST + 4088, 1 << 20), Err(Status::PRP_OFFSET));
        // A page of entries that are all the list itself: ends with the transfer's length.
        list(&ram, LIST, &[LIST; 512]);
        assert_eq!(layout(&ram, 0x1000, LIST, 4 << 20).map(|slices| slices.len()), Ok(1024));
    }
}
