//! The kernel proper out of a bzImage.
//!
//! QEMU starts an ELF kernel straight at its PVH entry, so the emulated processor need not run the decompressor:
//! with Debian's XZ payload that is 2.5 of the 5 seconds that an AMD host otherwise takes to come up.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Inputs};
use crate::command::command;
use crate::kernels::Kernel;

/// Offsets in the setup header (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The payload is followed by its unpacked size, which only the decompressors that are made for it expect.
const SIZE_TRAILER: usize = 4;

/// The ELF kernel within the bzImage of `kernel`.
pub(crate) fn unpacked(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let inputs = Inputs::new().with("kernel", format!("{} {}", kernel.release, kernel.version));
    let extract = |folder: &Path| extract(&kernel.vmlinuz, &folder.join("vmlinux"));
    Ok(cache.entry("bed/vmlinux", &inputs, extract)?.join("vmlinux"))
}

/// Writes the ELF kernel within the bzImage `from` to `to`.
fn extract(from: &Path, to: &Path) -> Result<()> {
    let image = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", from.display()))?;
    let program = decompressor(payload)
        .with_context(|| format!("the payload of {} is packed in an unknown way", from.display()))?;
    let output = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut unpack = command(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}, which unpacks the kernel {}", from.display()))?;
    if let Some(mut stdin) = unpack.stdin.take() {
        // The end of the stream may be found before all is written; the result is checked below.
        let _ = stdin.write_all(payload);
    }
    unpack.wait().with_context(|| format!("cannot wait for {program}"))?;
    let mut magic = [0; 4];
    let read = File::open(to).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    if read.is_err() || &magic != b"\x7fELF" {
        bail!("{program} found no ELF kernel in {}", from.display());
    }
    Ok(())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        count => usize::from(count),
    };
    let from = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let length = word(PAYLOAD_LENGTH)?.checked_sub(SIZE_TRAILER)?;
    image.get(from..from.checked_add(length)?)
}

fn decompressor(payload: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 3] =
        [(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")];
    KNOWN.iter().find(|(magic, _)| payload.starts_with(magic)).map(|&(_, program)| program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_cut_out_of_the_setup_header() {
        let mut image = vec![0; 5 * 512 + 32];
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = 8 + 4;
        image[5 * 512 + 16..5 * 512 + 24].copy_from_slice(b"\xfd7zXZ\0ab");
        let found = payload(&image).unwrap();
        assert_eq!(found, b"\xfd7zXZ\0ab");
        assert_eq!(decompressor(found), Some("xz"));
        image[PAYLOAD_LENGTH + 3] = 0xff;
        assert!(payload(&image).is_none() && payload(b"short").is_none());
    }
}
