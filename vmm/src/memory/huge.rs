//! Huge pages behind guest memory.
//!
//! A memfd gets none by itself on most hosts (`shmem_enabled` is `never`), so a thread looks which 2 MiB
//! ranges the guest has come to use and asks for each once (`MADV_COLLAPSE`, Linux 6.1). Ranges that the
//! guest has not touched stay unallocated.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::ram::GuestMemory;
use crate::sys::HUGE_PAGE;

/// Collapse a range once half of its base pages are in use: it never costs more than twice what was used.
const MIN_RESIDENT: u16 = 256;
/// Time between looks: short while a guest boots, doubling up to half a minute when nothing changes.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Stack of the thread: one page list of 512 bytes.
const STACK: usize = 64 << 10;

/// Asks for huge pages for the ranges that overlap `start..end`, now; for memory that is about to be used.
///
/// Returns how many there are now. A host without `MADV_COLLAPSE` gives none, and that is no error.
pub fn collapse_range(memory: &GuestMemory, start: u64, end: u64) -> usize {
    let mut collapsed = 0;
    for region in memory.iter() {
        let first = start.saturating_sub(region.start_addr().0);
        let last = end.saturating_sub(region.start_addr().0).min(region.len());
        let Ok(first) = usize::try_from(first) else { continue };
        let Ok(last) = usize::try_from(last) else { continue };
        for offset in (first / HUGE_PAGE * HUGE_PAGE..last).step_by(HUGE_PAGE) {
            if region.protectable().collapse(offset).is_ok() {
                collapsed += 1;
            }
        }
    }
    collapsed
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

/// The thread that keeps asking, until dropped.
pub struct HugePages {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for HugePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HugePages").finish_non_exhaustive()
    }
}

impl HugePages {
    /// Starts to watch `memory`.
    pub fn start(memory: GuestMemory) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let own = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("huge-pages".into())
            .stack_size(STACK)
            .spawn(move || watch(&memory, &own))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        *self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the huge-page thread panicked; this is a bug");
        }
    }
}

fn watch(memory: &GuestMemory, stop: &Stop) {
    // One flag for each 2 MiB of each region: collapsed, or refused for good.
    let mut done: Vec<Vec<bool>> = memory
        .iter()
        .map(|region| vec![false; usize::try_from(region.len()).map_or(0, |len| len / HUGE_PAGE)])
        .collect();
    let mut wait = FIRST_WAIT;
    loop {
        let stopped = stop.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = stop
            .changed
            .wait_timeout_while(stopped, wait, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return;
        }
        drop(stopped);
        match look(memory, &mut done, stop) {
            Ok(0) => wait = (wait * 2).min(LONGEST_WAIT),
            Ok(_) => wait = FIRST_WAIT,
            Err(error) => {
                tracing::info!("guest memory stays on 4 KiB pages: {error}");
                return;
            }
        }
    }
}

/// One pass over all memory; returns how many ranges were collapsed.
fn look(memory: &GuestMemory, done: &mut [Vec<bool>], stop: &Stop) -> io::Result<usize> {
    let mut collapsed = 0;
    for (region, done) in memory.iter().zip(done) {
        for (index, done) in done.iter_mut().enumerate().filter(|(_, done)| !**done) {
            if *stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) {
                return Ok(collapsed);
            }
            let mut resident = [0];
            region.protectable().residency(index * HUGE_PAGE, &mut resident)?;
            if resident[0] < MIN_RESIDENT {
                continue;
            }
            match region.protectable().collapse(index * HUGE_PAGE) {
                Ok(()) => {
                    *done = true;
                    collapsed += 1;
                }
                // Out of huge pages, or a page of the range was busy: try again at a later look.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(collapsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn contents_survive_being_collapsed() {
        let ram = GuestRam::new(8 << 20).unwrap();
        let words = |base: u64| (0..512_u64).map(move |page| base + page * 4096);
        words(4 << 20).for_each(|at| ram.memory().write_obj(at, GuestAddress(at)).unwrap());
        let collapsed = collapse_range(ram.memory(), 4 << 20, 6 << 20);
        assert!(collapsed <= 1, "only the range asked for");
        words(4 << 20).for_each(|at| {
            assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap(), at);
        });
    }

    #[test]
    fn only_ranges_in_use_are_collapsed() {
        let ram = GuestRam::new(8 << 20).unwrap();
        for page in 0..300_u64 {
            ram.memory().write_obj(1_u8, GuestAddress((2 << 20) + page * 4096)).unwrap();
        }
        ram.memory().write_obj(1_u8, GuestAddress(4 << 20)).unwrap();
        let mut done = vec![vec![false; 4]];
        // A host without MADV_COLLAPSE fails here, and then nothing may be marked.
        let result = look(ram.memory(), &mut done, &Stop::default());
        let expected = if result.is_ok() { [false, true, false, false] } else { [false; 4] };
        assert_eq!(done[0], expected);
    }
}
