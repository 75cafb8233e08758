//! Kernel images: what a file is, whether it can boot here, and loading it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use object::elf::{ELFCLASS64, EM_X86_64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache};
use vm_memory::{ByteValued, GuestAddress};

use super::layout::HIGH_RAM;
use crate::memory::GuestMemory;

/// Where the setup header starts in a bzImage and in the zero page (boot.rst, "the real-mode kernel header").
const SETUP_HEADER: u64 = 0x1f1;
/// "`HdrS`", at offset 0x202.
const SETUP_MAGIC: u32 = 0x5372_6448;
/// Boot protocol 2.12, the first with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// `xloadflags`: the image has a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Offset of that entry point in the protected-mode part (boot.rst, "64-bit boot protocol").
const ENTRY_64: u64 = 0x200;
/// A setup header of zero sectors means four.
const DEFAULT_SETUP_SECTORS: u64 = 4;
const SECTOR: u64 = 512;
/// `COMMAND_LINE_SIZE` on x86 less the NUL (arch/x86/include/asm/setup.h), for a vmlinux, which does not say.
const VMLINUX_CMDLINE: u32 = 2047;
/// Boot flag at the end of the boot sector; present in every setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// Alignment of a vmlinux (`CONFIG_PHYSICAL_ALIGN`'s default).
const VMLINUX_ALIGNMENT: u32 = 0x20_0000;

/// Why a file is no kernel that boots here.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("cannot read the kernel {path}: {source}; check --kernel")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{path} is {what}, not a kernel that boots here; --kernel takes an x86-64 bzImage (Debian: \
         /boot/vmlinuz-*) or a vmlinux ELF"
    )]
    NotAKernel {
        /// Its path.
        path: PathBuf,
        /// What it seems to be.
        what: String,
    },
    /// It ends too early.
    #[error("the kernel {path} is truncated: {len} bytes of {needed}; copy it again")]
    Truncated {
        /// Its path.
        path: PathBuf,
        /// Bytes there are.
        len: u64,
        /// Bytes its header promises.
        needed: u64,
    },
    /// Loading failed although the header was sound.
    #[error("cannot load the kernel {path}: {source}")]
    Load {
        /// Its path.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
}

/// The two kinds of kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// A compressed, self-relocating image.
    BzImage,
    /// The kernel proper, an ELF executable.
    Vmlinux,
}

/// A kernel image that was checked to be bootable.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    file: File,
    kind: KernelKind,
    header: setup_header,
    /// End of the memory that the kernel needs while it starts, if it starts where it prefers to.
    memory_end: u64,
}

impl KernelImage {
    /// Opens and checks an image.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(not_a_kernel(
                path,
                if metadata.is_dir() { "a directory" } else { "no regular file" },
            ));
        }
        let mut start = [0; 0x40];
        let known = file.read_at(&mut start, 0).map_err(read)?;
        if known < start.len() {
            return Err(not_a_kernel(path, if known == 0 { "empty" } else { "a very short file" }));
        }
        if start.starts_with(b"\x7fELF") {
            return Self::open_vmlinux(path, file);
        }
        Self::open_bzimage(path, file, metadata.len(), &start)
    }

    fn open_bzimage(path: &Path, file: File, len: u64, start: &[u8; 0x40]) -> Result<Self, ImageError> {
        let mut header = setup_header::default();
        let complete = file.read_exact_at(header.as_mut_slice(), SETUP_HEADER).is_ok();
        if !complete || header.header != SETUP_MAGIC || header.boot_flag != BOOT_FLAG {
            return Err(not_a_kernel(path, guess(start)));
        }
        if header.version < PROTOCOL_2_12 {
            let (major, minor) = (header.version >> 8, header.version & 0xff);
            return Err(not_a_kernel(
                path,
                format!("a kernel of boot protocol {major}.{minor:02}, older than 2.12"),
            ));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(not_a_kernel(path, "a 32-bit x86 kernel"));
        }
        let sectors = match header.setup_sects {
            0 => DEFAULT_SETUP_SECTORS,
            sectors => u64::from(sectors),
        };
        let needed = (sectors + 1) * SECTOR + u64::from(header.syssize) * 16;
        if len < needed {
            return Err(ImageError::Truncated { path: path.to_path_buf(), len, needed });
        }
        let memory_end = header.pref_address.saturating_add(u64::from(header.init_size));
        Ok(Self { path: path.to_path_buf(), file, kind: KernelKind::BzImage, header, memory_end })
    }

    fn open_vmlinux(path: &Path, file: File) -> Result<Self, ImageError> {
        let refuse = |what: &str| not_a_kernel(path, what);
        let mut ident = [0; 20];
        file.read_exact_at(&mut ident, 0)
            .map_err(|source| ImageError::Read { path: path.to_path_buf(), source })?;
        let machine = u16::from_le_bytes([ident[18], ident[19]]);
        if ident[4] != ELFCLASS64.0 {
            return Err(refuse("a 32-bit ELF file"));
        }
        if machine != EM_X86_64.0 {
            return Err(not_a_kernel(
                path,
                format!("an ELF file for another architecture (e_machine {machine})"),
            ));
        }
        let cache = ReadCache::new(&file);
        let elf = FileHeader64::<LittleEndian>::parse(&cache).map_err(|_| refuse("a damaged ELF file"))?;
        let segments = elf
            .program_headers(LittleEndian, &cache)
            .map_err(|_| refuse("an ELF file without program headers"))?;
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let mut memory_end = 0;
        for segment in segments.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD) {
            let file_end = segment.p_offset(LittleEndian).saturating_add(segment.p_filesz(LittleEndian));
            if file_end > len {
                return Err(ImageError::Truncated { path: path.to_path_buf(), len, needed: file_end });
            }
            if segment.p_paddr(LittleEndian) < HIGH_RAM {
                // A kernel's first segment is at 16 MiB; per-CPU data may be linked at 0 but is loaded high.
                return Err(refuse("an ELF file that loads below 1 MiB, so no Linux kernel"));
            }
            let end = segment.p_paddr(LittleEndian).saturating_add(segment.p_memsz(LittleEndian));
            memory_end = memory_end.max(end);
        }
        if memory_end == 0 {
            return Err(refuse("an ELF file without anything to load"));
        }
        drop(cache);
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: SETUP_MAGIC,
            version: PROTOCOL_2_12,
            loadflags: 1,
            kernel_alignment: VMLINUX_ALIGNMENT,
            cmdline_size: VMLINUX_CMDLINE,
            initrd_addr_max: 0x7fff_ffff,
            ..setup_header::default()
        };
        Ok(Self { path: path.to_path_buf(), file, kind: KernelKind::Vmlinux, header, memory_end })
    }

    /// Which kind it is.
    pub fn kind(&self) -> KernelKind {
        self.kind
    }

    /// End of the guest physical memory that the kernel needs to start.
    pub fn memory_end(&self) -> u64 {
        self.memory_end
    }

    /// Bytes that a bzImage unpacks itself into, at a place of its own choice (boot.rst, `init_size`).
    pub fn unpacking(&self) -> Option<u64> {
        (self.kind == KernelKind::BzImage).then_some(self.header.init_size.into())
    }

    /// The longest command line it takes, in bytes without the NUL.
    pub fn max_cmdline(&self) -> usize {
        self.header.cmdline_size as usize
    }

    /// The highest address that its initramfs may occupy.
    pub fn max_initrd_address(&self) -> u64 {
        u64::from(self.header.initrd_addr_max)
    }

    /// The setup header for the zero page.
    pub fn setup_header(&self) -> setup_header {
        self.header
    }

    /// The file, for others to read: it stays this one whatever becomes of the path.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Copies the image into guest memory and returns the address of its 64-bit entry point.
    pub fn load(&self, memory: &GuestMemory) -> Result<u64, ImageError> {
        let fail = |source| ImageError::Load { path: self.path.clone(), source };
        let mut file =
            self.file.try_clone().map_err(|source| ImageError::Read { path: self.path.clone(), source })?;
        match self.kind {
            KernelKind::BzImage => {
                let start = GuestAddress(HIGH_RAM);
                let loaded = BzImage::load(memory, Some(start), &mut file, Some(start)).map_err(fail)?;
                Ok(loaded.kernel_load.0 + ENTRY_64)
            }
            KernelKind::Vmlinux => {
                let loaded =
                    Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_RAM))).map_err(fail)?;
                Ok(loaded.kernel_load.0)
            }
        }
    }
}

fn not_a_kernel(path: &Path, what: impl Into<String>) -> ImageError {
    ImageError::NotAKernel { path: path.to_path_buf(), what: what.into() }
}

/// Names what people pass by mistake, by the magic numbers of the formats.
fn guess(start: &[u8; 0x40]) -> &'static str {
    match start {
        _ if start[0x38..0x3c] == *b"ARM\x64" => "an ARM64 kernel",
        _ if start[0x38..0x3c] == *b"RSC\x05" => "a RISC-V kernel",
        [0x1f, 0x8b, ..] => "a gzip file (unpack it first)",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file (unpack it first)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file (unpack it first)",
        [b'0', b'7', b'0', b'7', b'0', ..] => "an initramfs (use --initrd)",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image",
        [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => "an archive (a Debian package?)",
        [b'M', b'Z', ..] => "an EFI or DOS program without a Linux setup header",
        _ => "in no format known here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn bzimage(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 1,
            syssize: 64,
            boot_flag: BOOT_FLAG,
            header: SETUP_MAGIC,
            version: 0x20f,
            loadflags: 1,
            xloadflags: XLF_KERNEL_64,
            pref_address: 0x100_0000,
            init_size: 0x300_0000,
            cmdline_size: 2047,
            ..setup_header::default()
        };
        change(&mut header);
        let mut bytes = vec![0; 1024 + 1024];
        bytes[0x1f1..0x1f1 + header.as_slice().len()].copy_from_slice(header.as_slice());
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        KernelImage::open(file(bytes).path()).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_bzimage_is_taken() {
        let file = file(&bzimage(|_| {}));
        let image = KernelImage::open(file.path()).unwrap();
        assert_eq!((image.kind(), image.memory_end()), (KernelKind::BzImage, 0x400_0000));
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(error(&[]).contains("empty"));
        assert!(error(b"#!/bin/sh\n").contains("very short"));
        assert!(error(&[0; 4096]).contains("no format known"));
        let mut arm = [0; 4096];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(error(&arm).contains("ARM64"));
        assert!(error(&[&[0x1f, 0x8b][..], &[0; 4096]].concat()).contains("gzip"));
        assert!(error(&bzimage(|header| header.xloadflags = 0)).contains("32-bit"));
        assert!(error(&bzimage(|header| header.version = 0x204)).contains("2.04"));
        let directory = KernelImage::open(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(directory.contains("a directory"), "{directory}");
        let missing = KernelImage::open(Path::new("/nonexistent/vmlinuz")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/vmlinuz"), "{missing}");
    }

    #[test]
    fn a_truncated_bzimage_is_refused_with_both_lengths() {
        let bytes = bzimage(|_| {});
        let message = error(&bytes[..2000]);
        assert!(message.contains("2000 bytes of 2048"), "{message}");
    }

    #[test]
    fn elf_files_that_are_no_x86_64_kernel_are_refused() {
        let mut elf = vec![0_u8; 4096];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[4] = 1;
        assert!(error(&elf).contains("32-bit"));
        elf[4] = 2;
        elf[5] = 1;
        elf[18] = 183;
        assert!(error(&elf).contains("another architecture (e_machine 183)"));
        elf[18] = 62;
        let message = error(&elf);
        assert!(message.contains("ELF"), "{message}");
        // This test program is a real ELF file, and no kernel.
        let own = KernelImage::open(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(own.contains("below 1 MiB"), "{own}");
    }
}
