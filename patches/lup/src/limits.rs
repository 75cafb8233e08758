//! Every bound on a patch. None is near what a real one needs; all keep a file that somebody sent from taking memory or time.

/// Bytes of a manifest. The original code of 256 functions of 4 KiB each takes 1.4 MiB of it, in base64.
pub const MANIFEST_BYTES: usize = 4 << 20;

/// Bytes of a module. One with a few functions has some 100 KiB; of the stock modules of Debian's 6.1 and 6.12 all but amdgpu,
/// which has 28 MiB, are smaller.
pub const MODULE_BYTES: usize = 16 << 20;

/// Bytes of a signature. minisign takes a trusted comment of up to 8 KiB (`TRUSTEDCOMMENTMAXBYTES` of `src/minisign.h`,
/// minisign 0.11); the rest has some 300.
pub const SIGNATURE_BYTES: usize = 9 << 10;

/// Bytes of a public key file. It has one comment, of up to 1 KiB (`COMMENTMAXBYTES`, same place), and 56 characters of key.
pub const PUBLIC_KEY_BYTES: usize = 2 << 10;

/// Bytes of a `.lup` file.
pub const FILE_BYTES: usize =
    crate::container::HEADER_BYTES + MANIFEST_BYTES + MODULE_BYTES + SIGNATURE_BYTES;

/// Functions of one patch, which all are switched in one pause. Fixes replace one to seven.
pub const FUNCTIONS: usize = 256;

/// Bytes of one function's original code. The longest function of Debian's kernels has 100,000.
pub const FUNCTION_BYTES: usize = 1 << 18;

/// Holes in one function's code. Each is made by one or more relocations, and code has at most one in five bytes.
pub const HOLES: usize = FUNCTION_BYTES / 5;

/// Symbols that the host resolves for one module. Debian's stock modules leave 1,230 undefined at most.
pub const SYMBOLS: usize = 1 << 16;

/// Kernels that one patch fits. Debian has fewer in all its suites together.
pub const KERNELS: usize = 64;

/// What one patch fixes.
pub const FIXES: usize = 64;

/// Patches that one is built upon.
pub const REQUIRES: usize = 64;

/// Characters of a patch's name. It is part of file names.
pub const NAME_CHARS: usize = 64;

/// Characters of a summary: a line or two of a terminal.
pub const SUMMARY_CHARS: usize = 200;

/// Characters of the sentence that says why old and new code may run side by side.
pub const REASON_CHARS: usize = 2000;

/// Characters of a kernel's release (`__NEW_UTS_LEN`, `include/uapi/linux/utsname.h`, Linux 6.1).
pub const RELEASE_CHARS: usize = 64;

/// Characters of a module's name: `MODULE_NAME_LEN` (`include/linux/moduleparam.h`, Linux 6.1) without the zero at its end.
pub const MODULE_NAME_CHARS: usize = 55;

/// Characters of a symbol: `KSYM_NAME_LEN` (`include/linux/kallsyms.h`, Linux 6.1) without the zero at its end.
pub const SYMBOL_CHARS: usize = 511;

/// Sections of a module. Debian's have 94 at most; one with a section for each function of a patch, and one for its
/// relocations, has 600.
pub const SECTIONS: usize = 4096;

/// Characters of a section's name: `.rela.text.` and a symbol's name, if each function has a section of its own.
pub const SECTION_CHARS: usize = SYMBOL_CHARS + 16;

/// Bytes of memory that a module's sections ask for: those of the file, and as much again without contents in the file.
pub const MODULE_MEMORY_BYTES: u64 = 2 * MODULE_BYTES as u64;

/// The largest alignment of a module's section: a page. The kernel gives a module no memory that is aligned better
/// (`module_alloc`, `arch/x86/kernel/module.c`, Linux 6.1).
pub const SECTION_ALIGNMENT: u64 = 4096;
