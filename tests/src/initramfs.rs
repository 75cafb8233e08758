//! An initramfs that is put together: the kernel unpacks several archives one after the other
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::images;

/// A regular file that only its owner writes to.
const FILE: u32 = 0o100_644;

/// One that grows.
#[derive(Debug)]
pub(crate) struct Initramfs {
    path: PathBuf,
    out: File,
}

/// The contents of the file `name` in the first archive of an initramfs.
pub(crate) fn contents(archive: &Path, name: &str) -> Result<Vec<u8>> {
    let bytes = fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let (mut rest, archive) = (&bytes[..], archive.display());
    while let Some((found, contents, next)) = first_item(rest) {
        if found == name.as_bytes() {
            return Ok(contents.to_vec());
        }
        rest = next;
    }
    anyhow::bail!("there is no {name} in {archive}")
}

/// Name and contents of an archive's first item, and what is behind it.
fn first_item(archive: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    const HEAD: usize = 110;
    let field = |number: usize| {
        let start = 6 + number * 8;
        usize::from_str_radix(std::str::from_utf8(archive.get(start..start + 8)?).ok()?, 16).ok()
    };
    let (len, name_len) = (field(6)?, field(11)?);
    let start = (HEAD + name_len).next_multiple_of(4);
    let name = archive.get(HEAD..HEAD + name_len.checked_sub(1)?)?;
    let contents = archive.get(start..start + len)?;
    Some((name, contents, archive.get((start + len).next_multiple_of(4)..)?))
}

impl Initramfs {
    /// An empty one in the file `path`.
    pub(crate) fn new(path: PathBuf) -> Result<Self> {
        let out = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, out })
    }

    /// Adds what is in an archive.
    pub(crate) fn archive(mut self, from: &Path) -> Result<Self> {
        let mut from = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        io::copy(&mut from, &mut self.out)?;
        Ok(self)
    }

    /// The tiny guest's, with what plants stacks and starts kernels in it (`scripts/guest/plant`), built for the kernel
    /// `kind`: `6.1-cloud`.
    pub(crate) fn planted(path: PathBuf, kind: &str) -> Result<Self> {
        let plant = images::image(&format!("plant-{kind}.cpio"))?;
        Self::new(path)?.archive(&images::image("tiny.cpio")?)?.archive(&plant)
    }

    /// Adds the file `from` as `name` to the root folder.
    pub(crate) fn file(mut self, name: &str, from: &Path) -> Result<Self> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.item(name, FILE, &contents)?;
        self.item("TRAILER!!!", 0, &[])?;
        Ok(self)
    }

    /// Adds `text` as `name` to the root folder.
    pub(crate) fn text(mut self, name: &str, text: &str) -> Result<Self> {
        self.item(name, FILE, text.as_bytes())?;
        self.item("TRAILER!!!", 0, &[])?;
        Ok(self)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn item(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let (len, name_len) = (u32::try_from(contents.len())?, u32::try_from(name.len() + 1)?);
        // Inode, mode, owner, group, links, time, size, the device's numbers, the node's, the name's size, a sum.
        let fields = [1, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        let head = fields.iter().fold("070701".to_owned(), |head, field| format!("{head}{field:08x}"));
        let padded = |mut bytes: Vec<u8>| {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        self.out.write_all(&padded(format!("{head}{name}\0").into_bytes()))?;
        self.out.write_all(&padded(contents.to_vec()))?;
        Ok(())
    }
}
