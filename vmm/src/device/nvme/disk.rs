//! The raw image file behind a controller.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::spec::{BLOCK, BLOCK_SHIFT};
use crate::memory::GuestSlice;
use crate::sys;

/// Zeroes written per system call where the file system cannot make them itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing there.
    #[error("disk {path}: no such file; check the path, or make an empty image with `truncate -s 8G {path}`")]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// The file exists but may not be opened.
    #[error("disk {path}: not permitted to {mode} it; {advice}")]
    Permission {
        /// The path as given.
        path: PathBuf,
        /// What was asked for: "read" or "read and write".
        mode: &'static str,
        /// What may help.
        advice: &'static str,
    },
    /// Any other failure to open.
    #[error("disk {path}: cannot open it; check the path and the file system it lies on")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory.
    #[error("disk {path}: it is a directory; give the image file inside it")]
    Directory {
        /// The path as given.
        path: PathBuf,
    },
    /// A pipe, a socket or a character device.
    #[error("disk {path}: it is a {kind}; a disk is a regular file (a raw image) or a block device")]
    Kind {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Another process uses it.
    #[error("disk {path}: another VMM {use_} it; stop that one first, or {advice}")]
    Locked {
        /// The path as given.
        path: PathBuf,
        /// How the other one uses it, as far as the lock tells.
        use_: &'static str,
        /// What else may help.
        advice: &'static str,
    },
    /// The file system cannot lock.
    #[error("disk {path}: cannot lock it against other VMMs; copy it to a local file system")]
    Lock {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No byte in it.
    #[error("disk {path}: it is empty; give it a size with `truncate -s 8G {path}`")]
    Empty {
        /// The path as given.
        path: PathBuf,
    },
    /// Not a whole number of blocks.
    #[error(
        "disk {path}: its size of {size:#x} bytes is no multiple of {BLOCK} bytes; a raw image is (a qcow2 \
         image or a cut-off download may not be): convert it, or round up with `truncate -s %{BLOCK} {path}`"
    )]
    Size {
        /// The path as given.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// An open, locked image.
///
/// Its size is taken once: a file that grows later shows no more of itself, one that is cut fails the reads
/// behind its end. The lock (flock(2)) goes with the descriptor, so that not even `kill -9` leaves it behind.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    blocks: u64,
    read_only: bool,
}

impl Disk {
    /// Opens the raw image or block device at `path` and locks it: alone to write, shared to read.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, DiskError> {
        let path = path.as_ref().to_path_buf();
        // Before opening: a pipe would block the open, and some character devices act on it.
        let kind = std::fs::metadata(&path).map_err(|error| open_error(&path, read_only, error))?.file_type();
        if kind.is_dir() {
            return Err(DiskError::Directory { path });
        }
        if !kind.is_file() && !kind.is_block_device() {
            let kind = if kind.is_char_device() {
                "character device"
            } else if kind.is_fifo() {
                "pipe"
            } else {
                "socket"
            };
            return Err(DiskError::Kind { path, kind });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&path)
            .map_err(|error| open_error(&path, read_only, error))?;
        lock(&file, &path, read_only)?;
        // Not from the metadata: those of a block device have no size.
        let size =
            file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Open { path: path.clone(), source })?;
        if size == 0 {
            return Err(DiskError::Empty { path });
        }
        if !size.is_multiple_of(BLOCK) {
            return Err(DiskError::Size { path, size });
        }
        Ok(Self { file, path, blocks: size >> BLOCK_SHIFT, read_only })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.blocks << BLOCK_SHIFT
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Its size in logical blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The bytes of `count` blocks from `first`; `None` when not all of them are on the disk.
    pub(super) fn extent(&self, first: u64, count: u64) -> Option<Extent> {
        let end = first.checked_add(count)?;
        (end <= self.blocks).then_some(Extent { offset: first << BLOCK_SHIFT, len: count << BLOCK_SHIFT })
    }

    pub(super) fn read(&self, extent: Extent, to: &[GuestSlice<'_>]) -> io::Result<()> {
        sys::read_at(&self.file, extent.offset, to)
    }

    pub(super) fn write(&self, extent: Extent, from: &[GuestSlice<'_>]) -> io::Result<()> {
        sys::write_at(&self.file, extent.offset, from)
    }

    /// Returns when everything written before is on stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// Gives the bytes back to the host; they read as zeroes then.
    pub(super) fn deallocate(&self, extent: Extent) -> io::Result<()> {
        Ok(fallocate(&self.file, FallocateMode::PunchHole, true, extent.offset, extent.len)?)
    }

    /// Makes the bytes read as zeroes, without giving up their place.
    pub(super) fn zero(&self, extent: Extent) -> io::Result<()> {
        if fallocate(&self.file, FallocateMode::ZeroRange, true, extent.offset, extent.len).is_ok() {
            return Ok(());
        }
        // tmpfs, for one, cannot.
        let (mut offset, end) = (extent.offset, extent.offset + extent.len);
        while offset < end {
            let len = usize::try_from(end - offset).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.file.write_all_at(&ZEROES[..len], offset)?;
            offset += len as u64;
        }
        Ok(())
    }
}

/// A range of bytes that was checked to lie on the disk; only [`Disk::extent`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    len: u64,
}

impl Extent {
    /// Length in bytes.
    pub(super) fn len(self) -> u64 {
        self.len
    }
}

fn open_error(path: &Path, read_only: bool, source: io::Error) -> DiskError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let (mode, advice) = if read_only {
                ("read", "change its owner or mode")
            } else {
                ("read and write", "change its owner or mode, or attach it with readonly=on")
            };
            DiskError::Permission { path, mode, advice }
        }
        _ => DiskError::Open { path, source },
    }
}

fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock if read_only => DiskError::Locked {
            path: path.to_path_buf(),
            use_: "writes",
            advice: "give this one a copy of the image",
        },
        TryLockError::WouldBlock => DiskError::Locked {
            path: path.to_path_buf(),
            use_: "uses",
            advice: "share it by giving all of them readonly=on",
        },
        TryLockError::Error(source) => DiskError::Lock { path: path.to_path_buf(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, size: u64) -> PathBuf {
        let path = dir.join("disk.img");
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.img");
        let error = Disk::open(&missing, false).unwrap_err();
        assert!(matches!(error, DiskError::Missing { .. }));
        assert!(error.to_string().contains(missing.to_str().unwrap()));
        assert!(matches!(Disk::open(dir.path(), true), Err(DiskError::Directory { .. })));
        assert!(matches!(
            Disk::open("/dev/null", true),
            Err(DiskError::Kind { kind: "character device", .. })
        ));
        assert!(matches!(Disk::open(image(dir.path(), 0), false), Err(DiskError::Empty { .. })));
        assert!(matches!(Disk::open(image(dir.path(), 513), false), Err(DiskError::Size { size: 513, .. })));
    }

    #[test]
    fn writers_are_alone_and_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 4096);
        let writer = Disk::open(&path, false).unwrap();
        assert!(matches!(Disk::open(&path, false), Err(DiskError::Locked { .. })));
        assert!(matches!(Disk::open(&path, true), Err(DiskError::Locked { use_: "writes", .. })));
        drop(writer);
        let _first = Disk::open(&path, true).unwrap();
        let _second = Disk::open(&path, true).unwrap();
        assert!(matches!(Disk::open(&path, false), Err(DiskError::Locked { .. })));
    }

    #[test]
    fn permission_errors_suggest_readonly() {
        let denied = || io::ErrorKind::PermissionDenied.into();
        let error = open_error(Path::new("/some/disk.img"), false, denied());
        assert!(error.to_string().contains("readonly=on"), "{error}");
        let error = open_error(Path::new("/some/disk.img"), true, denied());
        assert!(!error.to_string().contains("readonly=on"), "{error}");
    }

    #[test]
    fn extents_end_with_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(image(dir.path(), 4096), false).unwrap();
        assert!(disk.extent(0, 8).is_some());
        for (first, count) in [(0, 9), (8, 1), (u64::MAX, 1), (1, u64::MAX), (1 << 55, 1)] {
            assert_eq!(disk.extent(first, count), None, "{first:#x}+{count:#x}");
        }
    }

    #[test]
    fn zeroed_ranges_read_as_zeroes_and_nothing_else_does() {
        for dir in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let path = image(dir.path(), 4096);
            std::fs::write(&path, [7; 4096]).unwrap();
            let disk = Disk::open(&path, false).unwrap();
            disk.zero(disk.extent(1, 2).unwrap()).unwrap();
            disk.deallocate(disk.extent(4, 1).unwrap()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for (block, bytes) in bytes.chunks(512).enumerate() {
                let expected = if [1, 2, 4].contains(&block) { 0 } else { 7 };
                assert!(bytes.iter().all(|&byte| byte == expected), "block {block}");
            }
        }
    }
}
