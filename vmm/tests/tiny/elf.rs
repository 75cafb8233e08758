//! A vmlinux of one segment.

/// Size of the ELF header and of one program header (System V ABI, ELF-64 object file format).
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;
/// `ET_EXEC`, `EM_X86_64`, `EV_CURRENT`, `PT_LOAD`.
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const VERSION: u32 = 1;
const LOAD: u32 = 1;

/// An executable that is loaded at `base` and entered at `entry`.
pub(super) fn vmlinux(base: u64, entry: u64, code: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend(EXECUTABLE.to_le_bytes());
    file.extend(X86_64.to_le_bytes());
    file.extend(VERSION.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(u64::from(HEADER).to_le_bytes()); // program headers follow
    file.extend(0_u64.to_le_bytes()); // no sections
    file.extend(0_u32.to_le_bytes()); // flags
    for half in [HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let offset = u64::from(HEADER) + u64::from(PROGRAM_HEADER);
    let len = code.len() as u64;
    file.extend(LOAD.to_le_bytes());
    file.extend(7_u32.to_le_bytes()); // readable, writable, executable
    for word in [offset, base, base, len, len, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
