//! Why a vCPU left the guest, free of KVM's structures.

/// One exit, with the bytes that it asks for or brings.
#[derive(Debug)]
pub enum VmExit<'a> {
    /// Reads from a port: `data` holds one or more units of `size` bytes to fill.
    PortIn {
        /// I/O port.
        port: u16,
        /// Bytes per unit: 1, 2 or 4.
        size: usize,
        /// The units, to be filled in order.
        data: &'a mut [u8],
    },
    /// A hypercall (`lucos_abi`): the arguments are in the vCPU's registers, and the answer goes where a read of the port
    /// puts it.
    Hypercall,
    /// A read as tombstones make it ([`super::TOMBSTONE_PORT`]). Whether it is one, the registers say.
    Tombstone,
    /// Writes one byte to the port of stubs ([`update_server::x86::stub`]): RIP tells whether it is one.
    Stub {
        /// The byte.
        value: u8,
    },
    /// Writes to a port.
    PortOut {
        /// I/O port.
        port: u16,
        /// Bytes per unit: 1, 2 or 4.
        size: usize,
        /// The units, in order.
        data: &'a [u8],
    },
    /// Reads from an address without RAM.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// To be filled; up to 8 bytes.
        data: &'a mut [u8],
    },
    /// Writes to an address without RAM.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What is written; up to 8 bytes.
        data: &'a [u8],
    },
    /// The guest did to a page of RAM what its protection forbids (KVM api.rst 4.10, `KVM_RUN` fails with `EFAULT`); it is in
    /// front of the instruction, or in the middle of delivering an event.
    Trapped,
    /// One instruction was carried out, as was asked for (KVM api.rst 4.87, `KVM_GUESTDBG_SINGLESTEP`).
    Stepped {
        /// Which debug conditions were met: DR6 (Intel SDM vol. 3B, 18.2.3).
        dr6: u64,
    },
    /// Writes to a model-specific register that is watched.
    MsrWrite {
        /// Which one.
        index: u32,
        /// What.
        value: u64,
    },
    /// A triple fault (Intel SDM vol. 3A, 6.15, "double fault").
    Shutdown,
    /// KVM cannot emulate an instruction that needs it, or could not for a page that was protected when it came there. It is
    /// in front of the instruction, which may have read from a device.
    NotEmulated {
        /// What KVM adds, as far as it is valid.
        data: Vec<u64>,
    },
    /// KVM could not go on.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*` (include/uapi/linux/kvm.h).
        suberror: u32,
        /// What KVM adds, as far as it is valid.
        data: Vec<u64>,
    },
    /// The CPU refused the guest's state.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// The guest is in system management mode: it sent itself an SMI.
    SystemManagement,
    /// Somebody wants this vCPU out, or a signal came; nothing of the guest is pending.
    Interrupted,
    /// An exit that this VMM never asked for.
    Unexpected {
        /// `KVM_EXIT_*` (include/uapi/linux/kvm.h).
        reason: u32,
    },
}

/// Exits by kind, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// [`VmExit::PortIn`].
    PortIn,
    /// [`VmExit::PortOut`], and [`VmExit::Stub`].
    PortOut,
    /// [`VmExit::Hypercall`].
    Hypercall,
    /// [`VmExit::Tombstone`].
    Tombstone,
    /// [`VmExit::MmioRead`].
    MmioRead,
    /// [`VmExit::MmioWrite`].
    MmioWrite,
    /// [`VmExit::Trapped`].
    Trapped,
    /// [`VmExit::Stepped`].
    Stepped,
    /// [`VmExit::MsrWrite`].
    MsrWrite,
    /// [`VmExit::NotEmulated`].
    NotEmulated,
    /// [`VmExit::Interrupted`].
    Interrupted,
    /// Everything that ends a guest.
    Fatal,
}

impl ExitKind {
    /// All kinds, with the names that the API shows.
    pub const NAMES: [(Self, &'static str); 12] = [
        (Self::PortIn, "port_in"),
        (Self::PortOut, "port_out"),
        (Self::Hypercall, "hypercall"),
        (Self::Tombstone, "tombstone"),
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::Trapped, "trapped"),
        (Self::Stepped, "stepped"),
        (Self::MsrWrite, "msr_write"),
        (Self::NotEmulated, "not_emulated"),
        (Self::Interrupted, "interrupted"),
        (Self::Fatal, "fatal"),
    ];
}

impl VmExit<'_> {
    /// The kind of this exit.
    pub fn kind(&self) -> ExitKind {
        match self {
            Self::PortIn { .. } => ExitKind::PortIn,
            Self::PortOut { .. } | Self::Stub { .. } => ExitKind::PortOut,
            Self::Hypercall => ExitKind::Hypercall,
            Self::Tombstone => ExitKind::Tombstone,
            Self::MmioRead { .. } => ExitKind::MmioRead,
            Self::MmioWrite { .. } => ExitKind::MmioWrite,
            Self::Trapped => ExitKind::Trapped,
            Self::Stepped { .. } => ExitKind::Stepped,
            Self::MsrWrite { .. } => ExitKind::MsrWrite,
            Self::NotEmulated { .. } => ExitKind::NotEmulated,
            Self::Interrupted => ExitKind::Interrupted,
            Self::Shutdown
            | Self::SystemManagement
            | Self::InternalError { .. }
            | Self::FailEntry { .. }
            | Self::Unexpected { .. } => ExitKind::Fatal,
        }
    }
}
