//! What a disk has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Running totals, added to by all workers.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
    host_errors: AtomicU64,
    interrupts: AtomicU64,
    doorbells: AtomicU64,
}

/// The totals at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DiskCounters {
    /// READ commands completed with success.
    pub reads: u64,
    /// Bytes they moved.
    pub read_bytes: u64,
    /// WRITE commands completed with success.
    pub writes: u64,
    /// Bytes they moved.
    pub written_bytes: u64,
    /// FLUSH commands completed with success.
    pub flushes: u64,
    /// WRITE ZEROES commands and deallocated ranges.
    pub discards: u64,
    /// I/O commands that failed.
    pub errors: u64,
    /// Of them, those where the host could not read or write the image.
    pub host_errors: u64,
    /// Interrupts raised; below the number of commands where completions were batched.
    pub interrupts: u64,
    /// Doorbell registers written: each is an exit of the guest.
    pub doorbells: u64,
}

impl Counters {
    pub(super) fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn write(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn discard(&self) {
        self.discards.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many there are now.
    pub(super) fn host_error(&self) -> u64 {
        self.host_errors.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn doorbell(&self) {
        self.doorbells.fetch_add(1, Ordering::Relaxed);
    }

    /// Each total is exact; together they are of nearly one moment.
    pub(super) fn snapshot(&self) -> DiskCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCounters {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            errors: get(&self.errors),
            host_errors: get(&self.host_errors),
            interrupts: get(&self.interrupts),
            doorbells: get(&self.doorbells),
        }
    }
}
