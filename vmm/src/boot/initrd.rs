//! The initramfs: a file that goes to the top of low memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestMemory;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Initrd {
    pub(super) fn open(path: &PathBuf) -> Result<Self, BootError> {
        let fail = |source| BootError::Initrd { path: path.clone(), source };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(fail(std::io::Error::other("it is empty or no regular file")));
        }
        Ok(Self { path: path.clone(), file, len: metadata.len() })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn load(&self, memory: &GuestMemory, start: u64) -> Result<(), BootError> {
        let len = usize::try_from(self.len).expect("it was checked to fit below 4 GiB");
        let mut file = &self.file;
        memory.read_exact_volatile_from(GuestAddress(start), &mut file, len).map_err(|error| {
            BootError::Initrd { path: self.path().to_path_buf(), source: std::io::Error::other(error) }
        })
    }
}

/// Finds room for the initramfs as high as the kernel allows, and checks that the kernel fits below it.
pub(super) fn place(
    initrd: Option<&Initrd>,
    low_end: u64,
    max_address: u64,
    kernel_end: u64,
) -> Result<u64, BootError> {
    let len = initrd.map_or(0, Initrd::len);
    let end = low_end.min(max_address.saturating_add(1));
    let start = end.checked_sub(len).map(|start| start / PAGE * PAGE);
    match start {
        Some(start) if start >= kernel_end => Ok(start),
        _ => Err(BootError::TooLittleMemory {
            needed: (kernel_end + len.next_multiple_of(PAGE)).div_ceil(MIB),
            available: end / MIB,
            with_initrd: if initrd.is_some() { " and initramfs" } else { "" },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_goes_to_the_top_below_the_kernels_limit() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let initrd = Initrd::open(&file.path().to_path_buf()).unwrap();
        assert_eq!(place(Some(&initrd), 512 * MIB, 0x7fff_ffff, 64 * MIB).unwrap(), 512 * MIB - 8192);
        assert_eq!(place(Some(&initrd), 3072 * MIB, 0x7fff_ffff, 64 * MIB).unwrap(), 2048 * MIB - 8192);
        let error = place(Some(&initrd), 64 * MIB, 0x7fff_ffff, 64 * MIB).unwrap_err().to_string();
        assert!(error.contains("at least 65 MiB"), "{error}");
        assert!(place(None, 64 * MIB, 0x7fff_ffff, 64 * MIB).is_ok());
    }

    #[test]
    fn a_directory_is_no_initramfs() {
        let error = Initrd::open(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }
}
