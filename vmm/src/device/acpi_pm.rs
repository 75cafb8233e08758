//! ACPI fixed hardware: the power button, the sleep register and the reset register.
//!
//! Fixed hardware, not the hardware-reduced kind: its power button and soft-off need no AML, and the kernel
//! finds the timers that KVM emulates.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bus::BusDevice;
use super::power::{PowerEvent, PowerEvents};
use crate::log_limit::LogLimit;

/// First I/O port of the block, and its length.
pub const PORTS: (u64, u64) = (0x600, 0x10);
/// `PM1a` event block: status (2 bytes), enable (2 bytes) (ACPI 6.5, 4.8.3.1).
pub const PM1_EVENT: u16 = 0x600;
/// `PM1a` control block (ACPI 6.5, 4.8.3.2).
pub const PM1_CONTROL: u16 = 0x604;
/// The register that resets the machine (ACPI 6.5, 4.8.3.6).
pub const RESET_REGISTER: u16 = 0x608;
/// What to write there.
pub const RESET_VALUE: u8 = 1;
/// The system control interrupt: GSI 9, level triggered, active high.
pub const SCI: u8 = 9;
/// `SLP_TYP` for soft-off, as the DSDT's `_S5_` says.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Enable bits that exist (ACPI 6.5, table 4.13): timer, global lock, power and sleep button, clock. Only the
/// power button ever happens, but an operating system checks that what it enables stays enabled.
const ENABLE_BITS: u16 = (1 << 0) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 10);
/// `PWRBTN_STS` and `PWRBTN_EN` (ACPI 6.5, tables 4.12 and 4.13).
const POWER_BUTTON: u16 = 1 << 8;
/// `SCI_EN`: ACPI mode is on, always (table 4.14).
const SCI_EN: u16 = 1;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The line of the SCI.
pub trait InterruptLine: Send + Sync {
    /// Drives the line.
    fn set(&self, active: bool);
}

#[derive(Debug, Default)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
}

/// The block of registers.
pub struct AcpiPm {
    registers: Mutex<Registers>,
    sci: Box<dyn InterruptLine>,
    events: PowerEvents,
    refused: LogLimit,
}

impl std::fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcpiPm").field("registers", &self.registers).finish_non_exhaustive()
    }
}

impl AcpiPm {
    /// Registers after power-on.
    pub fn new(sci: Box<dyn InterruptLine>, events: PowerEvents) -> Self {
        Self { registers: Mutex::default(), sci, events, refused: LogLimit::default() }
    }

    /// Presses the power button. Returns whether the guest listens: it has enabled the event.
    pub fn press_power_button(&self) -> bool {
        let mut registers = self.lock();
        registers.status |= POWER_BUTTON;
        self.update_sci(&registers);
        registers.enable & POWER_BUTTON != 0
    }

    fn update_sci(&self, registers: &Registers) {
        self.sci.set(registers.status & registers.enable != 0);
    }

    fn write_control(&self, registers: &mut Registers, value: u16) {
        registers.control = value & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        let sleep_type = (value & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT;
        if sleep_type == u16::from(SLEEP_TYPE_S5) {
            self.events.send(PowerEvent::Off);
        } else if let Some(count) = self.refused.pass() {
            tracing::warn!(
                count,
                "the guest asked for sleep type {sleep_type}, which the DSDT does not offer"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let mut block = [0; 8];
        block[0..2].copy_from_slice(&registers.status.to_le_bytes());
        block[2..4].copy_from_slice(&registers.enable.to_le_bytes());
        block[4..6].copy_from_slice(&(registers.control | SCI_EN).to_le_bytes());
        data.fill(0);
        let bytes = usize::try_from(offset).ok().and_then(|offset| block.get(offset..)).unwrap_or(&[]);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let port = u64::from(PM1_EVENT) + offset;
        if port == u64::from(RESET_REGISTER) {
            if data == [RESET_VALUE] {
                self.events.send(PowerEvent::Reset);
            }
            return;
        }
        if let (true, &[low, high]) = (port == u64::from(PM1_CONTROL), data) {
            self.write_control(&mut registers, u16::from_le_bytes([low, high]));
            return;
        }
        // The event block may be written in bytes, words or one double word.
        for (at, &byte) in (offset..4).zip(data) {
            let (register, shift) = (at / 2, (at % 2) * 8);
            let bits = u16::from(byte) << shift;
            let mask = 0xff_u16 << shift;
            if register == 0 {
                registers.status &= !bits; // status bits are cleared by writing ones
            } else {
                registers.enable = (registers.enable & !mask) | (bits & ENABLE_BITS);
            }
        }
        self.update_sci(&registers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    struct Line(Arc<AtomicBool>);

    impl InterruptLine for Line {
        fn set(&self, active: bool) {
            self.0.store(active, Ordering::SeqCst);
        }
    }

    fn pm() -> (AcpiPm, Arc<AtomicBool>, mpsc::Receiver<PowerEvent>) {
        let (line, (sender, receiver)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let events = PowerEvents::new(move |event| sender.send(event).unwrap());
        (AcpiPm::new(Box::new(Line(Arc::clone(&line))), events), line, receiver)
    }

    #[test]
    fn the_power_button_holds_the_line_until_acknowledged() {
        let (pm, line, _events) = pm();
        assert!(!pm.press_power_button());
        assert!(!line.load(Ordering::SeqCst));
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(line.load(Ordering::SeqCst));
        let mut status = [0; 2];
        pm.read(0, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!line.load(Ordering::SeqCst));
        assert!(pm.press_power_button());
    }

    #[test]
    fn soft_off_and_reset_are_reported() {
        let (pm, _line, events) = pm();
        let s5 = SLEEP_ENABLE | (u16::from(SLEEP_TYPE_S5) << SLEEP_TYPE_SHIFT);
        pm.write(4, &s5.to_le_bytes());
        assert_eq!(events.try_recv(), Ok(PowerEvent::Off));
        pm.write(8, &[RESET_VALUE]);
        assert_eq!(events.try_recv(), Ok(PowerEvent::Reset));
        pm.write(4, &(SLEEP_ENABLE | (3 << SLEEP_TYPE_SHIFT)).to_le_bytes());
        pm.write(8, &[0]);
        pm.write(4, &[0xff]);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn acpi_mode_is_always_on() {
        let (pm, _line, _events) = pm();
        pm.write(4, &[0, 0]);
        let mut control = [0; 2];
        pm.read(4, &mut control);
        assert_eq!(u16::from_le_bytes(control) & SCI_EN, SCI_EN);
        let mut beyond = [7; 8];
        pm.read(12, &mut beyond);
        assert_eq!(beyond, [0; 8]);
    }
}
