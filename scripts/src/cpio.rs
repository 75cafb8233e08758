//! Writes the archive format of an initramfs ("newc", `Documentation/driver-api/early-userspace/buffer-format.rst`
//! of the kernel).
//!
//! Our own writer, because it gives every file to root and makes device nodes whoever runs it, and because equal
//! folders give equal archives.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    /// Begins an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    /// Adds everything below `folder`, in the order of the names.
    pub fn tree(&mut self, folder: &Path) -> Result<()> {
        self.below(folder, Path::new(""))
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        self.item(Path::new(path), DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.item(Path::new(path), FILE | mode, (0, 0), contents)
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.item(Path::new(path), CHARACTER_DEVICE | mode, (major, minor), &[])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.inode = 0;
        self.item(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn below(&mut self, root: &Path, inner: &Path) -> Result<()> {
        let folder = root.join(inner);
        let read =
            || -> io::Result<Vec<_>> { fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name())).collect() };
        let mut names = read().with_context(|| format!("cannot list {}", folder.display()))?;
        names.sort();
        for name in names {
            let path = inner.join(name);
            self.one(root, &path)
                .with_context(|| format!("cannot archive {}", root.join(&path).display()))?;
        }
        Ok(())
    }

    fn one(&mut self, root: &Path, path: &Path) -> Result<()> {
        let source = root.join(path);
        let metadata = fs::symlink_metadata(&source)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            self.item(path, DIRECTORY | mode, (0, 0), &[])?;
            self.below(root, path)
        } else if metadata.is_symlink() {
            self.item(path, LINK | 0o777, (0, 0), fs::read_link(source)?.as_os_str().as_bytes())
        } else {
            self.item(path, FILE | mode, (0, 0), &fs::read(source)?)
        }
    }

    /// Header, name and contents, each padded to a multiple of four.
    fn item(&mut self, path: &Path, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        self.inode += 1;
        let name = path.as_os_str().as_bytes();
        let size = u32::try_from(contents.len()).context("a file of an initramfs is at most 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Inode, mode, owner, group, links, time, size, device, device it is, name size, checksum.
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            let _ = write!(header, "{field:08X}");
        }
        self.put(header.as_bytes())?;
        self.put(name)?;
        self.put(&[0])?;
        self.pad()?;
        self.put(contents)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context("cannot write the initramfs")?;
        self.written += bytes.len();
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_aligned_items_of_root() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/sh"), "hello").unwrap();
        std::os::unix::fs::symlink("bin/sh", folder.path().join("init")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(folder.path()).unwrap();
        archive.character_device("console", 0o600, 5, 1).unwrap();
        archive.folder("etc").unwrap();
        archive.file("etc/hostname", 0o644, b"x").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(names(&bytes), ["bin", "bin/sh", "init", "console", "etc", "etc/hostname", "TRAILER!!!"]);
        let text = String::from_utf8_lossy(&bytes);
        // The console: inode 4, a character device of mode 0600, owned by root, one link, device 5:1.
        assert!(text.contains(
            "070701000000040000218000000000000000000000000100000000000000000000000000000000\
                               000000050000000100000008"
        ));
    }

    /// Walks the archive as the kernel does.
    fn names(bytes: &[u8]) -> Vec<String> {
        let field = |at: usize, index: usize| {
            let start = at + 6 + index * 8;
            usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (mut at, mut names) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_size) = (field(at, 6), field(at, 11));
            let name = at + 110;
            names.push(String::from_utf8(bytes[name..name + name_size - 1].to_vec()).unwrap());
            at = (name + name_size).next_multiple_of(4) + size;
            at = at.next_multiple_of(4);
        }
        names
    }
}
