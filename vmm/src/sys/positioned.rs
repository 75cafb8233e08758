//! Transfers between a file at a given offset and scattered guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Most buffers in one system call (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const MAX_BUFFERS: usize = 1024;

/// Fills `slices`, in their order, with the bytes of `file` from `offset` on.
///
/// preadv(2) rather than a seek and a read: the offset of an open file belongs to all of its users, and
/// several device threads read one file at once. A file that ends early is an `UnexpectedEof`.
pub fn read_at<B: BitmapSlice>(file: &File, offset: u64, slices: &[VolatileSlice<'_, B>]) -> io::Result<()> {
    let done = transfer(offset, slices, io::ErrorKind::UnexpectedEof, |buffers, count, offset| {
        // SAFETY: (1) `buffers` points to `count` iovecs; (2) each describes bytes of a `VolatileSlice` that
        // `slices` keeps mapped for the call; (3) they are guest memory, to which no Rust reference exists,
        // so the kernel may write them.
        unsafe { libc::preadv(file.as_raw_fd(), buffers, count, offset) }
    });
    // What failed may have written as well.
    for slice in slices {
        slice.bitmap().mark_dirty(0, slice.len());
    }
    done
}

/// Writes the bytes of `slices`, in their order, to `file` from `offset` on.
pub fn write_at<B: BitmapSlice>(file: &File, offset: u64, slices: &[VolatileSlice<'_, B>]) -> io::Result<()> {
    transfer(offset, slices, io::ErrorKind::WriteZero, |buffers, count, offset| {
        // SAFETY: (1) `buffers` points to `count` iovecs; (2) each describes bytes of a `VolatileSlice` that
        // `slices` keeps mapped for the call; the kernel only reads them.
        unsafe { libc::pwritev(file.as_raw_fd(), buffers, count, offset) }
    })
}

fn transfer<B: BitmapSlice>(
    mut offset: u64,
    slices: &[VolatileSlice<'_, B>],
    on_zero: io::ErrorKind,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut buffers: Vec<libc::iovec> = slices
        .iter()
        .filter(|slice| !slice.is_empty())
        .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        .collect();
    let mut rest = buffers.as_mut_slice();
    while !rest.is_empty() {
        let count = libc::c_int::try_from(rest.len().min(MAX_BUFFERS)).map_err(io::Error::other)?;
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let Ok(mut moved) = usize::try_from(call(rest.as_ptr(), count, at)) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            return Err(on_zero.into());
        }
        offset += moved as u64;
        let whole = rest
            .iter()
            .take_while(|buffer| {
                let fits = moved >= buffer.iov_len;
                moved -= if fits { buffer.iov_len } else { 0 };
                fits
            })
            .count();
        rest = &mut rest[whole..];
        if let Some(first) = rest.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::Write;

    #[test]
    fn scattered_bytes_come_back() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[9; 64]).unwrap();
        let mut from: Vec<u8> = (0..40).collect();
        let (left, right) = from.split_at_mut(7);
        write_at(&file, 10, &[VolatileSlice::from(left), VolatileSlice::from(right)]).unwrap();
        let mut to = [0; 42];
        let (left, right) = to.split_at_mut(20);
        read_at(&file, 9, &[VolatileSlice::from(left), VolatileSlice::from(right)]).unwrap();
        assert_eq!(to[0], 9);
        assert_eq!(to[1..41], (0..40).collect::<Vec<u8>>());
        assert_eq!(to[41], 9);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[9; 64]).unwrap();
        let mut to = [0; 10];
        let error = read_at(&file, 60, &[VolatileSlice::from(&mut to[..])]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn short_transfers_continue_where_they_stopped() {
        let mut bytes = [0; 30];
        let base = bytes.as_ptr().addr();
        let (left, right) = bytes.split_at_mut(10);
        let slices = [VolatileSlice::from(left), VolatileSlice::from(right)];
        let seen = Cell::new(0);
        transfer(100, &slices, io::ErrorKind::WriteZero, |buffers, _, offset| {
            // SAFETY: `transfer` passes at least one buffer.
            let first = unsafe { *buffers };
            assert_eq!(first.iov_base.addr(), base + seen.get());
            assert_eq!(offset, libc::off_t::try_from(100 + seen.get()).unwrap());
            seen.set(seen.get() + 6);
            6
        })
        .unwrap();
        assert_eq!(seen.get(), 30);
    }
}
