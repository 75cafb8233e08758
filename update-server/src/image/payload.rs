//! The kernel proper out of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::borrow::Cow;
use std::io::{ErrorKind, Read};

use super::ImageError;
use crate::bytes::{index_at, u16_at};
use crate::limits::IMAGE_BYTES;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The ELF file in `file`: itself, or what a bzImage unpacks to, its relocations behind it.
pub(super) fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, ImageError> {
    if file.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(file));
    }
    let payload = cut_out(file)?;
    let unpacked = match payload {
        [0x1f, 0x8b, ..] => stream("gzip", flate2::read::GzDecoder::new(payload)),
        // One stream, as the kernel's own decompressor takes it (lib/decompress_unxz.c).
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => stream("XZ", lzma_rust2::XzReader::new(payload, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload)
                .map_err(|error| ImageError::Unpack { method: "zstd", why: error.to_string() })?;
            stream("zstd", decoder)
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4(blocks),
        _ => return Err(ImageError::Packing { start: payload.iter().copied().take(6).collect() }),
    }?;
    Ok(Cow::Owned(unpacked))
}

/// The packed kernel within a bzImage. Its size, unpacked, may follow in four bytes, which no method minds.
fn cut_out(file: &[u8]) -> Result<&[u8], ImageError> {
    let is_kernel = u16_at(file, BOOT_FLAG) == Some(0xaa55) && file.get(MAGIC..MAGIC + 4) == Some(b"HdrS");
    if !is_kernel {
        return Err(ImageError::Unknown { start: file.iter().copied().take(8).collect() });
    }
    let truncated = |what, end| ImageError::Truncated { what, end, len: file.len() };
    let header = || truncated("the setup header", PAYLOAD_LENGTH + 4);
    let sectors = match *file.get(SETUP_SECTORS).ok_or_else(header)? {
        0 => 4,
        count => usize::from(count),
    };
    let offset = index_at(file, PAYLOAD_OFFSET).ok_or_else(header)?;
    let length = index_at(file, PAYLOAD_LENGTH).ok_or_else(header)?;
    let start = (sectors + 1) * SECTOR + offset;
    let end = start.saturating_add(length);
    file.get(start..end).ok_or_else(|| truncated("the packed kernel", end))
}

/// All that `packed` yields, within the limit.
fn stream(method: &'static str, mut packed: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut unpacked = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match packed.read(&mut chunk) {
            Ok(0) => return Ok(unpacked),
            Ok(count) => unpacked.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(ImageError::Unpack { method, why: error.to_string() }),
        }
        check_size(unpacked.len())?;
    }
}

fn check_size(size: usize) -> Result<(), ImageError> {
    if size > IMAGE_BYTES {
        return Err(ImageError::TooLarge { size, limit: IMAGE_BYTES });
    }
    Ok(())
}

/// The legacy frame that `lz4 -l` writes (`lib/decompress_unlz4.c`): blocks of up to 8 MiB, each after its packed length.
fn lz4(mut blocks: &[u8]) -> Result<Vec<u8>, ImageError> {
    const BLOCK: usize = 8 << 20;
    let wrong = |why: String| ImageError::Unpack { method: "LZ4", why };
    let mut unpacked = Vec::new();
    // What is left in the end is the unpacked size, or nothing.
    while blocks.len() > 4 {
        let length = index_at(blocks, 0).unwrap_or(usize::MAX);
        let end = length.saturating_add(4);
        let block =
            blocks.get(4..end).ok_or_else(|| wrong(format!("a block of {length:#x} bytes is cut off")))?;
        let from = unpacked.len();
        check_size(from + BLOCK)?;
        unpacked.resize(from + BLOCK, 0);
        let count = lz4_flex::block::decompress_into(block, &mut unpacked[from..])
            .map_err(|error| wrong(error.to_string()))?;
        unpacked.truncate(from + count);
        blocks = &blocks[end..];
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR + 16];
        file[SETUP_SECTORS] = 1;
        file[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[PAYLOAD_OFFSET] = 16;
        let length = u32::try_from(payload.len()).unwrap();
        file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(payload);
        file
    }

    fn kernel() -> Vec<u8> {
        (0..10 << 20).map(|at: u32| u8::try_from(at / 1000 % 251).unwrap()).collect()
    }

    #[test]
    fn an_elf_file_is_taken_as_it_is() {
        assert_eq!(unpack(b"\x7fELF and more").unwrap(), &b"\x7fELF and more"[..]);
    }

    #[test]
    fn gzip_unpacks() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&kernel()).unwrap();
        assert_eq!(unpack(&bzimage(&packer.finish().unwrap())).unwrap(), kernel());
    }

    #[test]
    fn zstd_unpacks() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let kernel = kernel();
        let mut payload = compress_to_vec(&kernel[..], CompressionLevel::Fastest);
        assert!(payload.len() < kernel.len() / 2, "it is not packed");
        // The kernel's build puts the unpacked length behind it (scripts/Makefile.lib, `size_append`).
        payload.extend_from_slice(&u32::try_from(kernel.len()).unwrap().to_le_bytes());
        assert_eq!(unpack(&bzimage(&payload)).unwrap(), kernel);
        payload.truncate(payload.len() / 2);
        assert!(matches!(unpack(&bzimage(&payload)).unwrap_err(), ImageError::Unpack { .. }));
    }

    #[test]
    fn lz4_unpacks_block_by_block() {
        let mut payload = b"\x02\x21\x4c\x18".to_vec();
        for block in kernel().chunks(8 << 20) {
            let packed = lz4_flex::block::compress(block);
            payload.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&packed);
        }
        payload.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(unpack(&bzimage(&payload)).unwrap(), kernel());
        payload.truncate(payload.len() - 20);
        let error = unpack(&bzimage(&payload)).unwrap_err().to_string();
        assert!(error.contains("LZ4") && error.contains("cut off"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_what_it_begins_with() {
        assert!(matches!(unpack(b"").unwrap_err(), ImageError::Unknown { start } if start.is_empty()));
        assert!(unpack(b"#!/bin/sh").unwrap_err().to_string().contains("[23, 21"));
        let mut cut = bzimage(b"\x1f\x8b 0123456789");
        cut.truncate(cut.len() - 1);
        assert!(matches!(unpack(&cut).unwrap_err(), ImageError::Truncated { .. }));
        assert!(matches!(unpack(&bzimage(b"BZh9")).unwrap_err(), ImageError::Packing { .. }));
        for magic in [&b"\x1f\x8b"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"] {
            let broken = [magic, &[0xa5; 64]].concat();
            assert!(
                matches!(unpack(&bzimage(&broken)).unwrap_err(), ImageError::Unpack { .. }),
                "{magic:x?}"
            );
        }
    }
}
