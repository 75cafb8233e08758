//! Huge pages behind guest memory.
//!
//! A memfd gets none by itself on most hosts (`shmem_enabled` is `never`), so a thread looks which 2 MiB
//! ranges the guest has come to use and asks for each once (`MADV_COLLAPSE`, Linux 6.1). Ranges that the
//! guest has not touched stay unallocated, but for those that a kernel is about to unpack itself into.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::ram::{GuestMemory, RamRegion};
use crate::sys::{HUGE_PAGE, PAGE};

/// Collapse a range once half of its base pages are in use: it never costs more than twice what was used.
const MIN_RESIDENT: u16 = 256;
/// From how many base pages on a range is one that a kernel unpacks itself into.
const MIN_BEGUN: u16 = 16;
/// Time between looks until that range is found, and when it is given up: KASLR is over in the first moments of a boot.
const UNPACKING_WAIT: Duration = Duration::from_millis(20);
const UNPACKING_LIMIT: Duration = Duration::from_secs(20);
/// Time between looks: short while a guest boots, doubling up to half a minute when nothing changes.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// At most one part in so many of the thread's time is spent on looks, however large the guest is.
const LOOK_SHARE: u32 = 10;
/// Stack of the thread: one page list of 512 bytes.
const STACK: usize = 64 << 10;

/// How often a range that is about to be used is asked for.
const COLLAPSE_TRIES: u32 = 3;

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
            // A page on its way to the lists of its processor is busy for a moment.
            if (0..COLLAPSE_TRIES).any(|_| region.protectable().collapse(offset).is_ok()) {
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
    /// Starts to watch `memory`, which holds all that a guest starts with; its kernel will unpack itself into `unpacking`
    /// bytes, or not at all.
    ///
    /// Where it does so is known to nobody before its first write there: KASLR draws the place. From there on all of it
    /// will be written, with one exit for each base page, unless huge pages are there before the kernel gets to them.
    pub fn start(memory: GuestMemory, unpacking: Option<u64>) -> io::Result<Self> {
        let watch = Watch::new(memory, unpacking)?;
        let stop = Arc::new(Stop::default());
        let own = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("huge-pages".into())
            .stack_size(STACK)
            .spawn(move || watch.run(&own))?;
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

/// What is known of one range of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// Nobody had touched it when the guest started.
    Fresh,
    /// Something was loaded there for the guest, or it was split because pages of it were watched.
    Loaded,
    /// Collapsed.
    Huge,
}

/// What the thread knows.
struct Watch {
    memory: GuestMemory,
    /// The ranges of each region.
    ranges: Vec<Vec<Range>>,
    /// Bytes that a kernel is about to unpack itself into.
    unpacking: Option<u64>,
}

impl Watch {
    /// Looks at what is there already.
    fn new(memory: GuestMemory, unpacking: Option<u64>) -> io::Result<Self> {
        let mut ranges = Vec::new();
        for region in memory.iter() {
            let mut counts = vec![0; usize::try_from(region.len()).map_or(0, |len| len / HUGE_PAGE)];
            region.protectable().residency(0, &mut counts)?;
            let state = |count| if count == 0 { Range::Fresh } else { Range::Loaded };
            ranges.push(counts.into_iter().map(state).collect());
        }
        Ok(Self { memory, ranges, unpacking })
    }

    fn run(mut self, stop: &Stop) {
        let begin = Instant::now();
        let (mut wait, mut took) = (FIRST_WAIT, Duration::ZERO);
        loop {
            let wanted = if self.unpacking.is_some() { UNPACKING_WAIT } else { wait };
            let wanted = wanted.max((took * LOOK_SHARE).min(LONGEST_WAIT));
            let stopped = stop.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            let (stopped, _) = stop
                .changed
                .wait_timeout_while(stopped, wanted, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner);
            if *stopped {
                return;
            }
            drop(stopped);
            let look = Instant::now();
            match self.look(stop) {
                Ok(0) if self.unpacking.is_some() => {}
                Ok(0) => wait = (wait * 2).min(LONGEST_WAIT),
                Ok(_) => wait = FIRST_WAIT,
                Err(error) => {
                    tracing::info!("guest memory stays on 4 KiB pages: {error}");
                    return;
                }
            }
            took = look.elapsed();
            if begin.elapsed() > UNPACKING_LIMIT {
                self.unpacking = None;
            }
        }
    }

    /// One pass over all memory; returns how many ranges were collapsed.
    fn look(&mut self, stop: &Stop) -> io::Result<usize> {
        let mut collapsed = 0;
        for (region, ranges) in self.memory.iter().zip(&mut self.ranges) {
            let mapping = region.protectable();
            let marks = region.marks();
            for (index, range) in ranges.iter_mut().enumerate() {
                if *range == Range::Huge && !marks.is_split(index) {
                    continue;
                }
                if *stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) {
                    return Ok(collapsed);
                }
                let offset = index * HUGE_PAGE;
                let mut resident = [0];
                mapping.residency(offset, &mut resident)?;
                if *range == Range::Fresh
                    && resident[0] >= MIN_BEGUN
                    && let Some(len) = self.unpacking.take()
                {
                    // The range itself is busy: the guest fills it.
                    let address = region.start_addr().0 + offset as u64;
                    collapsed += collapse_range(&self.memory, address + HUGE_PAGE as u64, address + len);
                }
                // What is watched is protected page by page, and stays on small ones.
                let is_watched = || marks.watches_any_of(offset / PAGE, HUGE_PAGE / PAGE);
                if resident[0] < MIN_RESIDENT || is_watched() {
                    continue;
                }
                match collapse(region, index) {
                    Ok(()) => {
                        *range = Range::Huge;
                        collapsed += 1;
                    }
                    // Out of huge pages, or a page of the range was busy: try again at a later look.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                        ) => {}
                    // Watched since it was looked.
                    Err(_) if is_watched() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(collapsed)
    }
}

/// Asks for the huge page with this number, unless less than half of it is in use: then it would cost memory.
pub(crate) fn collapse_used(region: &RamRegion, huge_page: usize) -> io::Result<()> {
    let mut resident = [0];
    region.protectable().residency(huge_page * HUGE_PAGE, &mut resident)?;
    if resident[0] < MIN_RESIDENT { Ok(()) } else { collapse(region, huge_page) }
}

/// Asks for the huge page with this number. If there is none, it is still split, should it have been.
fn collapse(region: &RamRegion, huge_page: usize) -> io::Result<()> {
    // First: watching may begin again meanwhile.
    let was_split = region.marks().set_split(huge_page, false);
    let result = region.protectable().collapse(huge_page * HUGE_PAGE);
    if was_split && result.is_err() {
        region.marks().set_split(huge_page, true);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use crate::sys::Protection;
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
        let mut watch = Watch::new(ram.memory().clone(), None).unwrap();
        // A host without MADV_COLLAPSE fails here, and then nothing may be marked.
        let result = watch.look(&Stop::default());
        let huge = if result.is_ok() { Range::Huge } else { Range::Loaded };
        assert_eq!(watch.ranges[0], [Range::Fresh, huge, Range::Loaded, Range::Fresh]);
    }

    #[test]
    fn what_was_split_is_made_whole_when_nothing_of_it_is_watched() {
        let ram = GuestRam::new(4 << 20).unwrap();
        for page in 0..512_u64 {
            ram.memory().write_obj(1_u8, GuestAddress(page * 4096)).unwrap();
        }
        let mut watch = Watch::new(ram.memory().clone(), None).unwrap();
        let first = watch.look(&Stop::default());
        if !matches!(first, Ok(1)) {
            eprintln!("left out: this host has no huge page to split and make whole: {first:?}");
            return;
        }
        let region = ram.regions().next().unwrap();
        let again = |watch: &mut Watch| watch.look(&Stop::default()).unwrap();
        assert_eq!(again(&mut watch), 0);
        region.marks().watch_any(true);
        region.marks().watch(3, true);
        region.protectable().protect(3 * PAGE, PAGE, Protection::ReadOnly).unwrap();
        assert_eq!((again(&mut watch), region.marks().is_split(0)), (0, true), "it is watched");
        region.protectable().protect(3 * PAGE, PAGE, Protection::Open).unwrap();
        region.marks().watch(3, false);
        assert_eq!((again(&mut watch), region.marks().is_split(0)), (1, false));
        assert_eq!(again(&mut watch), 0);
    }

    #[test]
    fn what_a_kernel_unpacks_into_is_collapsed_ahead_of_it() {
        let ram = GuestRam::new(12 << 20).unwrap();
        let touch = |address: u64| {
            for page in 0..20 {
                ram.memory().write_obj(1_u8, GuestAddress(address + page * 4096)).unwrap();
            }
        };
        // What the boot loader left is no sign of it.
        touch(0);
        let mut watch = Watch::new(ram.memory().clone(), Some(5 << 20)).unwrap();
        touch(4 << 20);
        watch.look(&Stop::default()).unwrap();
        let mut resident = [0; 6];
        ram.regions().next().unwrap().protectable().residency(0, &mut resident).unwrap();
        // A host without MADV_COLLAPSE leaves one page where it was asked.
        let ahead = if resident[3] > 1 { 512 } else { 1 };
        assert_eq!(resident, [20, 0, 20, ahead, ahead, 0]);
        assert_eq!(watch.unpacking, None, "it is done once");
    }
}
