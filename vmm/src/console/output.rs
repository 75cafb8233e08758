//! Console output: a bounded queue between the guest and a writer that may be slow.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::device::serial::SerialSink;

/// Bytes that wait for the writer at most: some thousand lines, a boot's worth.
const CAPACITY: usize = 256 << 10;
/// How long a vCPU waits for room before bytes are dropped. A pause waits for the vCPU, so it must be short;
/// a terminal that is merely slow makes room sooner.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long the writer gathers bytes before it writes them. A UART sends one at a time, and waking the writer costs
/// the vCPU more than the byte itself; people and programs at the other end do not notice two milliseconds.
const GATHER: Duration = Duration::from_millis(2);
/// How long closing waits for a writer that is stuck.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Stack of the writer thread: it copies slices of the queue.
const STACK: usize = 64 << 10;

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    closing: bool,
    finished: bool,
    /// Set when patience ran out, until the writer moves again: a stuck terminal costs the guest one wait only.
    stuck: bool,
}

/// The queue of one console.
#[derive(Default)]
pub struct OutputQueue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

impl std::fmt::Debug for OutputQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputQueue").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl OutputQueue {
    /// Starts a thread that writes what is sent here to `target`.
    pub fn start(mut target: impl Write + Send + 'static) -> std::io::Result<Arc<Self>> {
        let queue = Arc::new(Self::default());
        let own = Arc::clone(&queue);
        std::thread::Builder::new().name("console-out".into()).stack_size(STACK).spawn(move || {
            while let Some(bytes) = own.take() {
                if let Err(error) = target.write_all(&bytes).and_then(|()| target.flush()) {
                    tracing::warn!("console output is lost from here on: {error}");
                    break;
                }
            }
            let mut state = own.lock();
            state.finished = true;
            state.bytes.clear();
            drop(state);
            own.changed.notify_all();
        })?;
        Ok(queue)
    }

    /// Bytes that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes out what is queued, within a limit, and ends the writer.
    pub fn close(&self) {
        let deadline = Instant::now() + CLOSE_LIMIT;
        let mut state = self.lock();
        state.closing = true;
        self.changed.notify_all();
        while !state.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("console output is stuck; {} bytes are lost", state.bytes.len());
                return;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.bytes.is_empty() && !state.closing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.bytes.is_empty() {
            return None;
        }
        // While there are bytes nobody but `close` signals, so this is one sleep.
        let gathering = |state: &mut State| !state.closing;
        (state, _) =
            self.changed.wait_timeout_while(state, GATHER, gathering).unwrap_or_else(PoisonError::into_inner);
        state.stuck = false;
        let bytes = Vec::from(std::mem::take(&mut state.bytes));
        drop(state);
        self.changed.notify_all();
        Some(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialSink for OutputQueue {
    fn send(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.bytes.len() + bytes.len() > CAPACITY && !state.stuck && !state.finished {
            let full = |state: &mut State| state.bytes.len() + bytes.len() > CAPACITY && !state.finished;
            (state, _) = self
                .changed
                .wait_timeout_while(state, PATIENCE, full)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.bytes.len() + bytes.len() > CAPACITY || state.finished {
            state.stuck = true;
            self.dropped.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return;
        }
        let was_empty = state.bytes.is_empty();
        state.bytes.extend(bytes);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(std::io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_arrives_in_order_and_before_close_returns() {
        let (file, path) = tempfile::NamedTempFile::new().unwrap().into_parts();
        let queue = OutputQueue::start(file).unwrap();
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for byte in &text {
            queue.send(&[*byte]);
        }
        queue.close();
        assert_eq!(std::fs::read(&path).unwrap(), text);
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn a_stuck_writer_costs_bytes_but_holds_nobody_up() {
        let (open, gate) = mpsc::channel();
        let (seen, written) = mpsc::channel();
        let queue = OutputQueue::start(Gate(gate, seen)).unwrap();
        let begin = Instant::now();
        for _ in 0..CAPACITY * 3 {
            queue.send(b"x");
        }
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(queue.dropped() > 0);
        drop(open);
        queue.close();
        drop(written);
    }
}
