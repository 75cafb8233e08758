//! Console input: from standard input to the guest's receive buffer.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};

use super::escape::{Command, EscapeFilter, HELP};
use super::wake::StopSignal;
use crate::device::serial::Uart;

/// Stack of the input threads.
const STACK: usize = 64 << 10;
/// Pieces of input, up to 1 KiB each, that wait for the guest: a page pasted into an editor and more.
const WAITING_READS: usize = 64;

/// What an operator at the console can ask of the machine.
pub trait ConsoleCommands: Send + Sync + 'static {
    /// Stop now.
    fn quit(&self);
    /// Press the power button.
    fn press_power_button(&self);
}

/// The thread that reads standard input.
#[derive(Debug)]
pub struct ConsoleInput {
    stop: StopSignal,
    thread: Option<JoinHandle<()>>,
}

impl ConsoleInput {
    /// Starts to copy standard input to `uart`; on a terminal, Ctrl-A commands go to `commands`.
    pub fn start(uart: Arc<Uart>, interactive: bool, commands: Arc<dyn ConsoleCommands>) -> io::Result<Self> {
        let stop = StopSignal::new()?;
        let own_stop = stop.clone();
        let thread = thread::Builder::new().name("console-in".into()).stack_size(STACK).spawn(move || {
            if let Err(error) = copy(rustix::stdio::stdin(), &uart, interactive, &*commands, &own_stop) {
                tracing::warn!("console input ends: {error}");
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ConsoleInput {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console input thread panicked; this is a bug");
        }
    }
}

/// Copies what comes from `input` to `uart` until its end or a stop.
///
/// Commands are obeyed also when the guest does not read: its keys wait in a thread of their own, and those
/// that find no room are lost, as on a wire. Without commands the input waits instead, and nothing is lost.
fn copy(
    input: BorrowedFd<'_>,
    uart: &Uart,
    interactive: bool,
    commands: &dyn ConsoleCommands,
    stop: &StopSignal,
) -> io::Result<()> {
    let wanted = || !stop.stopped();
    if !interactive {
        return each_read(input, stop, |keys| {
            uart.receive(keys, wanted);
            Ok(())
        });
    }
    let (sender, receiver) = sync_channel::<Vec<u8>>(WAITING_READS);
    // The scope owns the sender: with its end the feeding thread ends, which the scope waits for.
    thread::scope(move |scope| {
        let sender = sender;
        let feed = move || receiver.iter().for_each(|keys| uart.receive(&keys, wanted));
        thread::Builder::new().name("console-keys".into()).stack_size(STACK).spawn_scoped(scope, feed)?;
        let mut filter = EscapeFilter::default();
        each_read(input, stop, |keys| {
            let (keys, found) = filter.feed(keys);
            for command in found {
                match command {
                    Command::Quit => commands.quit(),
                    Command::PowerButton => commands.press_power_button(),
                    Command::Help => io::stderr().write_all(HELP.as_bytes())?,
                }
            }
            if sender.try_send(keys).is_err() {
                tracing::debug!("keys are lost: the guest does not read its console");
            }
            Ok(())
        })
    })
}

/// Hands each piece of input to `take`.
fn each_read(
    input: BorrowedFd<'_>,
    stop: &StopSignal,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let mut ready = [PollFd::new(&input, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if stop.stopped() {
            return Ok(());
        }
        // Not through `Stdin`'s buffer: poll would not see what waits there.
        match rustix::io::read(input, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::serial::SerialSink;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    struct Discard;

    impl SerialSink for Discard {
        fn send(&self, _bytes: &[u8]) {}
    }

    struct Asked(Sender<()>);

    impl ConsoleCommands for Asked {
        fn quit(&self) {
            self.0.send(()).unwrap();
        }

        fn press_power_button(&self) {}
    }

    #[test]
    fn the_quit_key_works_although_the_guest_reads_nothing() {
        let uart = Uart::new(Arc::new(Discard)).unwrap();
        let (mut keyboard, input) = UnixStream::pair().unwrap();
        let (stop, (asked, quit)) = (StopSignal::new().unwrap(), channel());
        thread::scope(|scope| {
            scope.spawn(|| copy(input.as_fd(), &uart, true, &Asked(asked), &stop).unwrap());
            keyboard.write_all(&vec![b'k'; 200_000]).unwrap();
            keyboard.write_all(b"\x01x").unwrap();
            let heard = quit.recv_timeout(Duration::from_secs(10));
            stop.stop();
            heard.unwrap();
        });
    }
}
