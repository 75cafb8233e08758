//! Controller registers (3.1) and what their changes ask of the controller thread.
//!
//! ```text
//!             EN 0→1             SHN ≠ 0                 flushed
//!  Disabled ─────────▶ Enabled ───────────▶ ShuttingDown ────────▶ ShutDown
//!     ▲                  │                       │                    │
//!     └──────────────────┴───── EN 1→0 ──────────┴────────────────────┘
//! ```
//! The guest's writes only record the wish, on the vCPU's thread; the controller thread fulfils it and then
//! changes CSTS, which is where the guest waits.

use super::spec::MAX_QUEUE_ENTRIES;

/// Offsets of the registers (figure 68).
mod offset {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const VS: u64 = 0x08;
    pub(super) const INTMS: u64 = 0x0c;
    pub(super) const INTMC: u64 = 0x10;
    pub(super) const CC: u64 = 0x14;
    pub(super) const AQA: u64 = 0x24;
    pub(super) const ASQ: u64 = 0x28;
    pub(super) const ACQ: u64 = 0x30;
}

/// Controller Capabilities (3.1.1): queues are contiguous (CQR, bit 16), a reset takes at most 30 s (TO, bits
/// 31:24, units of 500 ms; it waits for a flush under way), the NVM command set (CSS, bit 37); doorbells 4
/// bytes apart and 4 KiB pages only (zeroes).
const CAP: u64 = (MAX_QUEUE_ENTRIES as u64 - 1) | (1 << 16) | (60 << 24) | (1 << 37);
/// Controller Configuration (3.1.5).
const CC_ENABLE: u32 = 1;
/// I/O Command Set Selected, Memory Page Size and Arbitration Mechanism: only zeroes are offered.
const CC_MUST_BE_ZERO: u32 = 0x3ff0;
const CC_SHUTDOWN: u32 = 0b11 << 14;
/// Bits that a guest can set.
const CC_WRITABLE: u32 = 0x00ff_fff1;
/// Controller Status (3.1.6).
const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 1 << 1;
const CSTS_SHUTDOWN: u32 = 0b11 << 2;
const CSTS_SHUTDOWN_OCCURRING: u32 = 0b01 << 2;
const CSTS_SHUTDOWN_COMPLETE: u32 = 0b10 << 2;

/// The admin queues as the registers describe them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AdminQueues {
    pub(super) sq: u64,
    pub(super) sq_size: u16,
    pub(super) cq: u64,
    pub(super) cq_size: u16,
}

/// What the controller thread has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Stop everything, then report [`Registers::was_reset`].
    Reset,
    /// Start with these queues, then report [`Registers::started`].
    Enable(AdminQueues),
    /// Stop everything and flush, then report [`Registers::was_shut_down`].
    ShutDown,
    /// Serve the admin queue.
    Serve,
    /// Nothing, until a register changes.
    Rest,
}

/// The registers at the beginning of BAR 0.
#[derive(Debug, Default)]
pub(super) struct Registers {
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    interrupt_mask: u32,
    /// EN went from 1 to 0 and the controller thread has not stopped everything yet.
    reset: bool,
}

impl Registers {
    /// The 8 bytes at `offset`, a multiple of 8.
    pub(super) fn read(&self, at: u64) -> u64 {
        let pair = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
        match at {
            offset::CAP => CAP,
            offset::VS => pair(super::spec::VERSION, self.interrupt_mask),
            offset::INTMC => pair(self.interrupt_mask, self.cc),
            // CSTS is the upper half of the 8 bytes at 0x18.
            0x18 => pair(0, self.csts),
            0x20 => pair(0, self.aqa),
            offset::ASQ => self.asq,
            offset::ACQ => self.acq,
            _ => 0,
        }
    }

    /// Writes 4 bytes at `offset`, a multiple of 4; `true` when the controller thread should look.
    pub(super) fn write(&mut self, at: u64, value: u32) -> bool {
        let low = |register: u64| (register & !0xffff_ffff) | u64::from(value & !0xfff);
        let high = |register: u64| (register & 0xffff_ffff) | (u64::from(value) << 32);
        match at {
            // Not used with MSI-X (3.1.3), but readable.
            offset::INTMS => self.interrupt_mask |= value,
            offset::INTMC => self.interrupt_mask &= !value,
            offset::CC => return self.configure(value & CC_WRITABLE),
            offset::AQA => self.aqa = value & 0x0fff_0fff,
            offset::ASQ => self.asq = low(self.asq),
            0x2c => self.asq = high(self.asq),
            offset::ACQ => self.acq = low(self.acq),
            0x34 => self.acq = high(self.acq),
            // CAP, VS and CSTS are read-only but for CSTS.NSSRO, which is never set.
            _ => {}
        }
        false
    }

    fn configure(&mut self, cc: u32) -> bool {
        let old = std::mem::replace(&mut self.cc, cc);
        if old & CC_ENABLE != 0 && cc & CC_ENABLE == 0 {
            self.reset = true;
        }
        // A controller that was shut down while disabled starts afresh too.
        if old & CC_ENABLE == 0 && cc & CC_ENABLE != 0 && self.csts & CSTS_SHUTDOWN != 0 {
            self.reset = true;
        }
        if cc & CC_SHUTDOWN != 0 && self.csts & CSTS_SHUTDOWN == 0 {
            self.csts |= CSTS_SHUTDOWN_OCCURRING;
        }
        old != cc
    }

    /// What to do next.
    pub(super) fn order(&self) -> Order {
        if self.reset {
            return Order::Reset;
        }
        match self.csts & CSTS_SHUTDOWN {
            CSTS_SHUTDOWN_OCCURRING => return Order::ShutDown,
            0 => {}
            _ => return Order::Rest,
        }
        if self.cc & CC_ENABLE == 0 || self.csts & CSTS_FATAL != 0 {
            return Order::Rest;
        }
        if self.csts & CSTS_READY != 0 {
            return Order::Serve;
        }
        let size = |field: u32| u16::try_from(field & 0xfff).unwrap_or(0) + 1;
        Order::Enable(AdminQueues {
            sq: self.asq,
            sq_size: size(self.aqa),
            cq: self.acq,
            cq_size: size(self.aqa >> 16),
        })
    }

    /// Whether the configuration is one that the controller offers.
    pub(super) fn configuration_is_valid(&self) -> bool {
        self.cc & CC_MUST_BE_ZERO == 0
    }

    /// log2 of the entry sizes of I/O submission and completion queues (CC.IOSQES and CC.IOCQES).
    pub(super) fn entry_shifts(&self) -> (u32, u32) {
        ((self.cc >> 16) & 0xf, (self.cc >> 20) & 0xf)
    }

    /// The controller serves the queues it was enabled with.
    pub(super) fn started(&mut self) {
        self.csts |= CSTS_READY;
    }

    /// Everything has stopped, nothing will touch guest memory.
    pub(super) fn was_reset(&mut self) {
        self.reset = false;
        self.csts = 0;
    }

    /// Everything has stopped and is on stable storage.
    pub(super) fn was_shut_down(&mut self) {
        if self.csts & CSTS_SHUTDOWN == CSTS_SHUTDOWN_OCCURRING {
            self.csts = (self.csts & !CSTS_SHUTDOWN) | CSTS_SHUTDOWN_COMPLETE;
        }
    }

    /// Controller Fatal Status: only a reset helps.
    pub(super) fn fail(&mut self) {
        self.csts |= CSTS_FATAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSTS: u64 = 0x18;

    fn csts(registers: &Registers) -> u32 {
        u32::try_from(registers.read(CSTS) >> 32).unwrap()
    }

    #[test]
    fn enable_reset_and_shutdown_are_orders_until_done() {
        let mut registers = Registers::default();
        registers.write(offset::AQA, 0x001f_001f);
        registers.write(offset::ASQ, 0x1234_5fff);
        registers.write(0x2c, 1);
        assert_eq!(registers.order(), Order::Rest);
        assert!(registers.write(offset::CC, 0x0046_0001));
        let queues = AdminQueues { sq: 0x1_1234_5000, sq_size: 32, cq: 0, cq_size: 32 };
        assert_eq!(registers.order(), Order::Enable(queues));
        registers.started();
        assert_eq!(registers.order(), Order::Serve);
        assert_eq!(csts(&registers), 1);
        registers.write(offset::CC, 0x0046_4001);
        assert_eq!((registers.order(), csts(&registers)), (Order::ShutDown, 0b0101));
        registers.was_shut_down();
        assert_eq!((registers.order(), csts(&registers)), (Order::Rest, 0b1001));
        registers.write(offset::CC, 0x0046_0000);
        assert_eq!((registers.order(), csts(&registers)), (Order::Reset, 0b1001));
        // Enabled again before the reset was done: the reset comes first all the same.
        registers.write(offset::CC, 0x0046_0001);
        assert_eq!(registers.order(), Order::Reset);
        registers.was_reset();
        assert_eq!((registers.order(), csts(&registers)), (Order::Enable(queues), 0));
    }

    #[test]
    fn only_a_reset_leaves_the_fatal_state() {
        let mut registers = Registers::default();
        registers.write(offset::CC, 1);
        registers.fail();
        assert_eq!(registers.order(), Order::Rest);
        registers.write(offset::CC, 0);
        assert_eq!(registers.order(), Order::Reset);
        registers.was_reset();
        assert_eq!((registers.order(), csts(&registers)), (Order::Rest, 0));
    }

    #[test]
    fn read_only_registers_ignore_writes() {
        let mut registers = Registers::default();
        for at in (0..0x1000).step_by(4).filter(|&at| at != offset::CC) {
            registers.write(at, 0xffff_ffff);
        }
        assert_eq!(registers.read(0), CAP);
        assert_eq!(registers.read(CSTS), 0);
        assert_eq!(registers.read(offset::ACQ), !0xfff);
    }
}
