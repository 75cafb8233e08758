//! A shared mapping of a file, aligned so that it can consist of huge pages.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Size of a base page (Intel SDM vol. 3A, 4.5), in bytes.
pub const PAGE: usize = 4096;
/// Size of the huge page that one page-directory entry maps (Intel SDM vol. 3A, 4.5), in bytes.
pub const HUGE_PAGE: usize = 2 << 20;
/// `MADV_COLLAPSE` (madvise(2), Linux 6.1): make huge pages of a range now, whatever sysfs says.
const MADV_COLLAPSE: libc::c_int = 25;

/// Where a file is mapped: addresses of this process, given back in the end.
#[derive(Debug)]
pub struct Span {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a span is an address range; what it is used for is the business of its owner.
unsafe impl Send for Span {}
// SAFETY: as above; no method needs exclusive access.
unsafe impl Sync for Span {}

impl Span {
    /// Maps `len` bytes of `file` from `offset` (both multiples of the page size), readable, writable and shared, to a multiple
    /// of [`HUGE_PAGE`].
    fn shared(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let reserve_len = len.checked_add(HUGE_PAGE).ok_or_else(|| io::Error::other("mapping too large"))?;
        // SAFETY: a fresh anonymous PROT_NONE reservation at an address of the kernel's choice.
        let reserved = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserve_len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = (HUGE_PAGE - reserved.addr() % HUGE_PAGE) % HUGE_PAGE;
        let start = reserved.cast::<u8>().wrapping_add(before);
        // SAFETY: MAP_FIXED replaces only pages of the reservation made above: `before + len` fits in it
        // because `before < HUGE_PAGE`.
        let mapped = unsafe {
            libc::mmap(
                start.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the reservation is ours and nothing refers to it.
            unsafe { libc::munmap(reserved, reserve_len) };
            return Err(error);
        }
        let len_mapped = len.next_multiple_of(PAGE);
        if before > 0 {
            // SAFETY: the head of the reservation, in front of the mapping, is used by nobody.
            unsafe { libc::munmap(reserved, before) };
        }
        let tail = reserve_len - before - len_mapped;
        if tail > 0 {
            // SAFETY: the tail of the reservation, behind the mapping, is used by nobody.
            unsafe { libc::munmap(start.wrapping_add(len_mapped).cast(), tail) };
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mmap returned the null page"))?;
        Ok(Self { start, len })
    }

    /// Address of the byte at `offset`, if `len` bytes from there on are in the span.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.start.as_ptr().wrapping_add(offset))
    }

    /// Address of the first byte in this process, for KVM's memory slots.
    pub fn host_address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span holds no byte (it never does).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever used an address of it borrowed its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A `MAP_SHARED`, readable and writable mapping that starts at a multiple of [`HUGE_PAGE`].
///
/// The guest writes the same bytes at any time, so no Rust reference to them is ever formed: all access
/// goes through [`Mapping::slice`], whose operations are volatile.
#[derive(Debug)]
pub struct Mapping(Span);

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` (both multiples of the page size).
    pub fn shared(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        Span::shared(file, offset, len).map(Self)
    }

    /// Volatile access to `len` bytes from `offset`; `None` when they do not all lie in the mapping.
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_, ()>> {
        self.marked_slice(offset, len, ())
    }

    /// The same, with writes marked in `marks`.
    pub fn marked_slice<B: BitmapSlice>(
        &self,
        offset: usize,
        len: usize,
        marks: B,
    ) -> Option<VolatileSlice<'_, B>> {
        let start = self.0.at(offset, len)?;
        // SAFETY: the range was just checked to lie in the mapping, which outlives `&self`, and all access by `VolatileSlice`
        // is volatile.
        Some(unsafe { VolatileSlice::with_bitmap(start, len, marks, None) })
    }
}

impl Deref for Mapping {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.0
    }
}

/// What may be done with pages of a [`View`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Anything.
    Open,
    /// Reading, and running what is there.
    ReadOnly,
    /// Nothing.
    Closed,
}

/// A second way to the bytes of a [`Mapping`], for KVM alone: this process never looks through it, so that its pages can be
/// protected one by one.
#[derive(Debug)]
pub struct View(Span);

impl View {
    /// As [`Mapping::shared`].
    pub fn shared(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        Span::shared(file, offset, len).map(Self)
    }

    /// Protects `len` bytes from `offset` on, both multiples of [`PAGE`], against the guest (mprotect(2)). When this returns, no
    /// vCPU can do any more what is forbidden, whether it runs or not: KVM has dropped its translations.
    ///
    /// `ENOMEM` says that there would be more ranges with a protection of their own than `vm.max_map_count` allows.
    pub fn protect(&self, offset: usize, len: usize, protection: Protection) -> io::Result<()> {
        let start = self.0.at(offset, len).filter(|start| start.addr().is_multiple_of(PAGE));
        let start = start.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let rights = match protection {
            Protection::Open => libc::PROT_READ | libc::PROT_WRITE,
            Protection::ReadOnly => libc::PROT_READ,
            Protection::Closed => libc::PROT_NONE,
        };
        // SAFETY: the range was just checked to lie in the view, and nothing in this process uses an address of it.
        let result = unsafe { libc::mprotect(start.cast(), len, rights) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Asks the kernel to back the huge page at `offset` (a multiple of [`HUGE_PAGE`]) with one huge page.
    ///
    /// Needs Linux 6.1 on the host; older kernels answer `EINVAL`, and so do newer ones for a range of which this view has no page
    /// yet, so one is asked for first, and for one whose pages are protected in different ways.
    pub fn collapse(&self, offset: usize) -> io::Result<()> {
        let start = self.0.at(offset, HUGE_PAGE).filter(|_| offset.is_multiple_of(HUGE_PAGE));
        let start = start.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // What comes of it is seen below. Where the page may not be read, this fails and does nothing.
        // SAFETY: the page lies in the view; MADV_POPULATE_READ does not change its contents.
        unsafe { libc::madvise(start.cast(), PAGE, libc::MADV_POPULATE_READ) };
        // SAFETY: the range lies in the view; MADV_COLLAPSE does not change its contents.
        let result = unsafe { libc::madvise(start.cast(), HUGE_PAGE, MADV_COLLAPSE) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Counts the base pages in memory, for each huge page from `offset` on, into `counts`.
    ///
    /// By mincore(2), which for a shared mapping tells what the file holds, whoever touched it.
    pub fn residency(&self, offset: usize, counts: &mut [u16]) -> io::Result<()> {
        let mut pages = [0u8; HUGE_PAGE / PAGE];
        for (index, count) in counts.iter_mut().enumerate() {
            let start = self.0.at(offset + index * HUGE_PAGE, HUGE_PAGE);
            let start = start.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            // SAFETY: `pages` has one byte for each page of the range, which lies in the view.
            let result = unsafe { libc::mincore(start.cast(), HUGE_PAGE, pages.as_mut_ptr()) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
            *count = pages.iter().map(|page| u16::from(page & 1)).sum();
        }
        Ok(())
    }
}

impl Deref for View {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.0
    }
}
