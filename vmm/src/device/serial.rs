//! The two serial ports: the console, and the wire to the guest agent.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;

/// Where a port stands on a PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight I/O ports.
    pub base: u16,
    /// Its interrupt (ISA, edge triggered).
    pub irq: u8,
}

/// The console, `ttyS0`.
pub const COM1: SerialPort = SerialPort { base: 0x3f8, irq: 4 };
/// The guest agent's port, `ttyS1`.
pub const COM2: SerialPort = SerialPort { base: 0x2f8, irq: 3 };
/// I/O ports of a UART.
pub const PORTS: u64 = 8;

/// Where a UART's output goes. It is called by vCPU threads and must not block.
pub trait SerialSink: Send + Sync {
    /// Takes bytes that the guest sent.
    fn send(&self, bytes: &[u8]);
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Sink(Arc<dyn SerialSink>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A 16550A.
pub struct Uart {
    serial: Mutex<Serial<Irq, NoEvents, Sink>>,
    /// Signalled after each read of the guest, which may have made room in the receive buffer.
    read: Condvar,
    irq: EventFd,
}

impl std::fmt::Debug for Uart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uart").finish_non_exhaustive()
    }
}

impl Uart {
    /// A UART after power-on that sends to `sink`.
    pub fn new(sink: Arc<dyn SerialSink>) -> io::Result<Self> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let serial = Serial::new(Irq(irq.try_clone()?), Sink(sink));
        Ok(Self { serial: Mutex::new(serial), read: Condvar::new(), irq })
    }

    /// Puts the registers and the buffer back to power-on, for the next life of a guest.
    pub fn reset(&self) -> io::Result<()> {
        let irq = Irq(self.irq.try_clone()?);
        let mut serial = self.lock();
        let sink = Sink(Arc::clone(&serial.writer().0));
        *serial = Serial::new(irq, sink);
        drop(serial);
        self.read.notify_all();
        Ok(())
    }

    /// The event that raises this UART's interrupt, for KVM's irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Puts `bytes` into the receive buffer as room appears, as long as `wanted` says so.
    ///
    /// The guest decides when it reads, so this may wait for ever: it is for a thread of its own.
    pub fn receive(&self, mut bytes: &[u8], wanted: impl Fn() -> bool) {
        let mut serial = self.lock();
        while !bytes.is_empty() && wanted() {
            let room = serial.fifo_capacity().min(bytes.len());
            let taken = serial.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0);
            bytes = &bytes[taken..];
            if !bytes.is_empty() {
                let limit = std::time::Duration::from_millis(100); // looks at `wanted` again
                (serial, _) = self.read.wait_timeout(serial, limit).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Puts one byte into the receive buffer if there is room, and does not wait.
    ///
    /// It is for waking a reader: one who has not read what fills the buffer will wake for that.
    pub fn offer(&self, byte: u8) {
        if let Err(error) = self.lock().enqueue_raw_bytes(&[byte]) {
            tracing::debug!("serial port: a byte to wake the guest's reader is left out: {error:?}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Irq, NoEvents, Sink>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(offset);
            if offset == 0 {
                self.read.notify_all();
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.lock().write(offset, byte)
        {
            tracing::debug!("serial port, register {offset}: {error:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Collected(Mutex<Vec<u8>>);

    impl SerialSink for Collected {
        fn send(&self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    #[test]
    fn output_reaches_the_sink() {
        let sink = Arc::new(Collected::default());
        let uart = Uart::new(Arc::clone(&sink) as Arc<dyn SerialSink>).unwrap();
        b"ok".iter().for_each(|byte| uart.write(0, &[*byte]));
        uart.write(0, b"xy");
        uart.write(300, b"z");
        assert_eq!(*sink.0.lock().unwrap(), b"ok");
    }

    #[test]
    fn input_larger_than_the_fifo_waits_for_the_guest() {
        let uart = Uart::new(Arc::new(Collected::default())).unwrap();
        let input: Vec<u8> = (0..=255).collect();
        let mut output = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| uart.receive(&input, || true));
            while output.len() < input.len() {
                let mut status = [0];
                uart.read(5, &mut status);
                if status[0] & 1 != 0 {
                    let mut byte = [0];
                    uart.read(0, &mut byte);
                    output.push(byte[0]);
                }
            }
        });
        assert_eq!(output, input);
    }

    #[test]
    fn a_byte_is_offered_beside_others_and_left_out_without_room() {
        let uart = Uart::new(Arc::new(Collected::default())).unwrap();
        uart.receive(b"ab", || true);
        (0..200).for_each(|_| uart.offer(b'w'));
        let mut read = Vec::new();
        loop {
            let mut status = [0];
            uart.read(5, &mut status);
            if status[0] & 1 == 0 {
                break;
            }
            let mut byte = [0];
            uart.read(0, &mut byte);
            read.push(byte[0]);
        }
        assert!(read.starts_with(b"abww") && read.len() < 200, "{}", read.len());
        uart.offer(b'x');
        let mut byte = [0];
        uart.read(0, &mut byte);
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn a_reset_forgets_registers_and_input() {
        let sink = Arc::new(Collected::default());
        let uart = Uart::new(Arc::clone(&sink) as Arc<dyn SerialSink>).unwrap();
        uart.receive(b"old", || true);
        // Divisor latch access and loopback: what is written next goes nowhere.
        uart.write(3, &[0x80]);
        uart.write(4, &[0x10]);
        uart.reset().unwrap();
        let mut status = [0];
        uart.read(5, &mut status);
        assert_eq!(status[0] & 1, 0);
        uart.write(0, b"n");
        assert_eq!(*sink.0.lock().unwrap(), b"n");
    }

    #[test]
    fn waiting_input_is_given_up_on_request() {
        let uart = Uart::new(Arc::new(Collected::default())).unwrap();
        let wanted = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| uart.receive(&[0; 1000], || wanted.load(Ordering::SeqCst)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            wanted.store(false, Ordering::SeqCst);
        });
    }
}
