//! Anonymous memory that can be mapped more than once.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

/// Creates a memfd of `size` bytes that can never change its size again.
///
/// The seals (`memfd_create(2)`, fcntl(2) `F_ADD_SEALS`) make a truncation behind the mappings impossible: a
/// shrunk memfd would turn guest accesses into SIGBUS in the VMM.
pub fn memfd(name: &CStr, size: u64) -> io::Result<File> {
    // SAFETY: `name` is a valid C string for the duration of the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    // SAFETY: fcntl on an open descriptor with an integer argument touches no memory of ours.
    let sealed = unsafe {
        libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
    };
    if sealed < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
