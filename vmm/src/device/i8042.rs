//! The keyboard controller, of which only the reset line is left.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use super::bus::BusDevice;
use super::power::{PowerEvent, PowerEvents};

/// First I/O port and length: data at 0x60, command and status at 0x64.
pub const PORTS: (u64, u64) = (0x60, 5);

#[derive(Debug)]
struct ResetLine(PowerEvents);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.send(PowerEvent::Reset);
        Ok(())
    }
}

/// An i8042 that knows the command "pulse reset" (0xfe at port 0x64).
#[derive(Debug)]
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl I8042 {
    /// A controller that reports resets to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(events))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let Ok(()) = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn only_the_reset_command_resets() {
        let (sender, receiver) = mpsc::channel();
        let device = I8042::new(PowerEvents::new(move |event| sender.send(event).unwrap()));
        device.write(4, &[0xd1]);
        device.write(0, &[0xfe]);
        device.write(4, &[0xfe, 0]);
        assert!(receiver.try_recv().is_err());
        device.write(4, &[0xfe]);
        assert_eq!(receiver.try_recv(), Ok(PowerEvent::Reset));
        let mut status = [0xff];
        device.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
