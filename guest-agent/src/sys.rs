//! The one home of `unsafe` in the agent: the right to use the port, the call itself, and memory that stays where it is.
#![allow(unsafe_code, reason = "this module is where the agent keeps its unsafe blocks")]

use std::arch::asm;
use std::hint::black_box;
use std::io;
use std::marker::PhantomData;

use lucos_abi::{CALL_BYTES, Call, PORT, PORTS};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// What calls bring and take: as large as one may be, locked in memory.
pub(crate) struct Buffer(Box<[Page]>);

impl Buffer {
    /// A buffer of zeros.
    pub(crate) fn new() -> io::Result<Self> {
        let mut buffer = Self(vec![Page([0; PAGE]); CALL_BYTES / PAGE].into_boxed_slice());
        // SAFETY: locking changes no memory, and the range is that of the box. It is unlocked when it is unmapped.
        unsafe { rustix::mm::mlock(buffer.0.as_mut_ptr().cast(), CALL_BYTES) }?;
        Ok(buffer)
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Its bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }

    /// Writes to every page, so that the kernel puts it where this process may write to it: even a locked page is moved, or
    /// write-protected for a moment.
    pub(crate) fn touch(&mut self) {
        for page in &mut self.0 {
            // A store of a value that the compiler cannot know to be the same.
            page.0[0] = black_box(page.0[0]);
        }
    }
}

/// The right to make hypercalls. It is the thread's (ioperm(2)), so it stays with the thread.
pub(crate) struct Port {
    number: u16,
    _of_this_thread: PhantomData<*const ()>,
}

impl Port {
    /// Asks the kernel for it; a kernel that is locked down gives it to nobody.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: the call takes three numbers, and changes only which ports this thread may use.
        let result = unsafe { libc::ioperm(PORT.into(), PORTS.into(), 1) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { number: PORT, _of_this_thread: PhantomData })
    }

    /// Makes a call with the first `len` bytes of `buffer`; `rest` is what `rdi` holds. Returns what `eax` says.
    pub(crate) fn call(&self, call: Call, buffer: &mut Buffer, len: usize, rest: u64) -> u32 {
        let answer: u32;
        let start = buffer.0.as_mut_ptr();
        // SAFETY: whoever answers the port may write to the buffer, which is borrowed mutably and whose length is at most
        // what the host writes at all; the assembly counts as one that reads and writes memory. The compiler keeps rbx to
        // itself, so it is exchanged for the time of the call. Having a `self` means that the port may be used.
        unsafe {
            asm!(
                "xchg {call}, rbx",
                "in eax, dx",
                "xchg {call}, rbx",
                call = inout(reg) call.register() => _,
                out("eax") answer,
                in("dx") self.number,
                in("rcx") start,
                in("rsi") len.min(CALL_BYTES),
                in("rdi") rest,
                options(nostack, preserves_flags)
            );
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_whole_pages_and_keeps_its_bytes() {
        let mut buffer = Buffer::new().unwrap();
        assert_eq!(buffer.bytes().len(), CALL_BYTES);
        assert_eq!(buffer.bytes().as_ptr().addr() % PAGE, 0);
        buffer.bytes_mut().fill(7);
        buffer.touch();
        assert!(buffer.bytes().iter().all(|&byte| byte == 7));
    }
}
