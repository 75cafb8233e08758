//! Numbers and layouts of NVM Express 1.4, which every section number in this directory refers to.

/// A submission queue entry (4.2): 64 bytes, and CC.IOSQES must say so.
pub(super) const SQE_SIZE: u64 = 64;
/// log2 of it.
pub(super) const SQE_SHIFT: u32 = 6;
/// A completion queue entry (4.6): 16 bytes, and CC.IOCQES must say so.
pub(super) const CQE_SIZE: u64 = 16;
/// log2 of it.
pub(super) const CQE_SHIFT: u32 = 4;
/// The one memory page size offered (CAP.MPSMIN = CAP.MPSMAX = 0).
pub(super) const PAGE: u64 = 4096;
/// Size of a logical block. 512 rather than 4096 bytes, because partition tables and boot loaders of images
/// made for any other disk assume it.
pub(super) const BLOCK: u64 = 512;
/// log2 of it.
pub(super) const BLOCK_SHIFT: u32 = 9;
/// Entries of the largest queue. Linux asks for 1024 by default (`io_queue_depth`, drivers/nvme/host/pci.c).
pub(super) const MAX_QUEUE_ENTRIES: u16 = 1024;
/// Identify, Maximum Data Transfer Size: 2^8 pages, 1 MiB.
///
/// As large as the largest request worth having in one piece, and small enough that a pause, which waits
/// for a transfer under way, does not wait long.
pub(super) const MDTS: u8 = 8;
/// The same in bytes.
pub(super) const MAX_TRANSFER: u64 = PAGE << MDTS;
/// The one namespace.
pub(super) const NAMESPACE: u32 = 1;
/// A namespace identifier that means all of them (6.1).
pub(super) const ALL_NAMESPACES: u32 = 0xffff_ffff;
/// Version 1.4.0, as VS (3.1.2) and Identify give it.
pub(super) const VERSION: u32 = 0x0001_0400;

/// Opcodes of admin commands (5, figure 139).
pub(super) mod admin_opcode {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
    pub(crate) const DOORBELL_BUFFER: u8 = 0x7c;
}

/// Opcodes of NVM commands (6, figure 346).
pub(super) mod io_opcode {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// A status (4.6.1): code in bits 7:0, code type in 10:8, Do Not Retry in 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(u16);

/// Do Not Retry: the same command would fail again.
const DNR: u16 = 1 << 14;

impl Status {
    // Generic (figure 126).
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const INVALID_OPCODE: Self = Self(DNR | 0x01);
    pub(super) const INVALID_FIELD: Self = Self(DNR | 0x02);
    pub(super) const DATA_TRANSFER: Self = Self(DNR | 0x04);
    pub(super) const INTERNAL: Self = Self(0x06);
    pub(super) const INVALID_NAMESPACE: Self = Self(DNR | 0x0b);
    pub(super) const SEQUENCE: Self = Self(DNR | 0x0c);
    pub(super) const PRP_OFFSET: Self = Self(DNR | 0x13);
    pub(super) const LBA_RANGE: Self = Self(DNR | 0x80);
    // Command specific (figure 128).
    pub(super) const CQ_INVALID: Self = Self(DNR | 0x100);
    pub(super) const QUEUE_ID: Self = Self(DNR | 0x101);
    pub(super) const QUEUE_SIZE: Self = Self(DNR | 0x102);
    pub(super) const ASYNC_LIMIT: Self = Self(DNR | 0x105);
    pub(super) const INTERRUPT_VECTOR: Self = Self(DNR | 0x108);
    pub(super) const LOG_PAGE: Self = Self(DNR | 0x109);
    pub(super) const QUEUE_DELETION: Self = Self(DNR | 0x10c);
    pub(super) const NOT_SAVEABLE: Self = Self(DNR | 0x10d);
    pub(super) const NOT_CHANGEABLE: Self = Self(DNR | 0x10e);
    pub(super) const READ_ONLY_RANGE: Self = Self(DNR | 0x182);
    // Media and data integrity (figure 130).
    pub(super) const WRITE_FAULT: Self = Self(0x280);
    pub(super) const READ_ERROR: Self = Self(0x281);

    /// Code type and code, without Do Not Retry.
    #[cfg(test)]
    pub(super) fn code(self) -> u16 {
        self.0 & 0x7ff
    }
}

/// A command as the guest wrote it: nothing in it has been checked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Command {
    pub(super) opcode: u8,
    /// FUSE and PSDT (4.2, figure 104).
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) namespace: u32,
    pub(super) prp1: u64,
    pub(super) prp2: u64,
    /// Command dwords 10 to 15.
    pub(super) dwords: [u32; 6],
}

impl Command {
    /// Takes an entry apart.
    pub(super) fn parse(bytes: &[u8; 64]) -> Self {
        let dword = |index: usize| {
            let mut dword = [0; 4];
            dword.copy_from_slice(&bytes[index * 4..index * 4 + 4]);
            u32::from_le_bytes(dword)
        };
        let qword = |index: usize| u64::from(dword(index)) | (u64::from(dword(index + 1)) << 32);
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            id: u16::from_le_bytes([bytes[2], bytes[3]]),
            namespace: dword(1),
            prp1: qword(6),
            prp2: qword(8),
            dwords: [dword(10), dword(11), dword(12), dword(13), dword(14), dword(15)],
        }
    }

    /// Command dword `number`, 10 to 15.
    pub(super) fn dword(&self, number: usize) -> u32 {
        self.dwords[number - 10]
    }

    /// Low half of command dword `number`.
    pub(super) fn low(&self, number: usize) -> u16 {
        (self.dword(number) & 0xffff) as u16
    }

    /// High half of command dword `number`.
    pub(super) fn high(&self, number: usize) -> u16 {
        (self.dword(number) >> 16) as u16
    }

    /// Refuses what no command here supports: fused operations and SGLs (4.2, figure 104).
    pub(super) fn check_flags(&self) -> Result<(), Status> {
        if self.flags == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) }
    }
}

/// A completion queue entry (4.6) but for the phase tag, which the queue adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    /// Command specific, dword 0.
    pub(super) result: u32,
    /// Head of the submission queue after this command.
    pub(super) sq_head: u16,
    pub(super) sq_id: u16,
    pub(super) command: u16,
    pub(super) status: Status,
}

impl Completion {
    /// Dwords 0 to 2, and dword 3 with the phase tag: the one that makes the entry valid, written last.
    pub(super) fn encode(&self, phase: bool) -> ([u8; 12], u32) {
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&self.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.sq_head.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.sq_id.to_le_bytes());
        let last = u32::from(self.command) | (u32::from(phase) << 16) | (u32::from(self.status.0) << 17);
        (bytes, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_apart() {
        let bytes: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let command = Command::parse(&bytes);
        assert_eq!((command.opcode, command.flags, command.id), (0, 1, 0x0302));
        assert_eq!(command.namespace, 0x0706_0504);
        assert_eq!(command.prp1, 0x1f1e_1d1c_1b1a_1918);
        assert_eq!(command.prp2, 0x2726_2524_2322_2120);
        assert_eq!(command.dword(10), 0x2b2a_2928);
        assert_eq!((command.low(15), command.high(15)), (0x3d3c, 0x3f3e));
    }

    #[test]
    fn status_and_phase_share_the_last_dword() {
        let completion = Completion {
            result: 0x0102_0304,
            sq_head: 5,
            sq_id: 6,
            command: 0xabcd,
            status: Status::INVALID_FIELD,
        };
        let (bytes, last) = completion.encode(true);
        assert_eq!(bytes, [4, 3, 2, 1, 0, 0, 0, 0, 5, 0, 6, 0]);
        assert_eq!(last, 0x8005_abcd);
    }
}
