//! The file: a header, its parts one behind the other, and perhaps a signature behind all that.
//!
//! `docs/patch-format.md` has it byte by byte. A file is complete without a signature, and what is signed is the whole of that
//! file. So any minisign signs a patch; and the signature of a signed one can be taken off again.

use crate::limits::{FILE_BYTES, MANIFEST_BYTES, MODULE_BYTES};
use crate::signature::{PublicKey, Signature, SignatureError, VerifyError};

/// What each file begins with. A transfer as text loses the first byte's highest bit, or changes the line ends; and `type`
/// ends at the third byte from the end. PNG does the same (Portable Network Graphics Specification, 5.2).
pub const MAGIC: [u8; 8] = *b"\x8cLUP\r\n\x1a\n";

/// The version of the format that this crate reads and writes.
pub const VERSION: u32 = 1;

/// Bytes before the first part.
pub const HEADER_BYTES: usize = 40;

/// Where the header's fields are.
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const RESERVED: usize = 12;
    pub(super) const MANIFEST: usize = 16;
    pub(super) const MODULE: usize = 24;
    pub(super) const MODULE_SIGNATURE: usize = 32;
}

/// Why bytes are no `.lup` file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// It is something else.
    #[error("this is no .lup file: it begins with {start:02x?} and not with {MAGIC:02x?}; check the path")]
    Magic {
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// It was one before somebody sent it.
    #[error(
        "the .lup file was changed on its way here: it begins with {start:02x?} and not with {MAGIC:02x?}; send it again, \
         as binary data"
    )]
    Mangled {
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// It ends too early.
    #[error(
        "the .lup file is cut off: its {what} ends at byte {end:#x}, the file at {len:#x}; get the whole file"
    )]
    Truncated {
        /// The part that is not all there.
        what: &'static str,
        /// Where that would end.
        end: usize,
        /// Where the file ends.
        len: usize,
    },
    /// It is of another version.
    #[error(
        "the .lup file has format version {found} (at byte 0x8), and only {VERSION} is known here; use a newer lucos"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// A field of the header must be 0.
    #[error(
        "byte {at:#x} of the .lup file, its {field}, is {found:#x} and must be 0; the file is damaged, or needs a newer lucos"
    )]
    NotZero {
        /// What it is for.
        field: &'static str,
        /// Where it is.
        at: usize,
        /// Its value.
        found: u64,
    },
    /// A part is empty, or longer than any.
    #[error(
        "byte {at:#x} of the .lup file says that its {part} has {found:#x} bytes; it must have 1 to {limit:#x}: the file is \
         damaged, or the patch too large"
    )]
    Length {
        /// Which part.
        part: &'static str,
        /// Where its length is.
        at: usize,
        /// Its length.
        found: u64,
        /// The most that it may have.
        limit: usize,
    },
    /// The file as a whole is too long.
    #[error("the file has {len:#x} bytes, and no .lup file more than {FILE_BYTES:#x}; check the path")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// What follows the last part is no signature.
    #[error("what follows the patch at byte {at:#x} is no signature as a .lup file has it")]
    Trailer {
        /// Where the patch ends.
        at: usize,
        /// What is wrong with it.
        source: SignatureError,
    },
}

/// A `.lup` file, taken apart. What its parts mean has not been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container<'a> {
    body: &'a [u8],
    manifest: &'a [u8],
    module: &'a [u8],
    signature: Option<Signature>,
}

impl<'a> Container<'a> {
    /// Takes a file apart.
    pub fn read(file: &'a [u8]) -> Result<Self, ContainerError> {
        if file.len() > FILE_BYTES {
            return Err(ContainerError::TooLong { len: file.len() });
        }
        check_magic(file)?;
        let header: &[u8; HEADER_BYTES] =
            file.first_chunk().ok_or_else(|| too_short("header", HEADER_BYTES, file))?;
        let version = u32_at(header, at::VERSION);
        if version != VERSION {
            return Err(ContainerError::Version { found: version });
        }
        must_be_zero("reserved field", at::RESERVED, u32_at(header, at::RESERVED).into())?;
        let manifest_len = length(header, "manifest", at::MANIFEST, MANIFEST_BYTES)?;
        let module_len = length(header, "module", at::MODULE, MODULE_BYTES)?;
        must_be_zero(
            "length of a module signature",
            at::MODULE_SIGNATURE,
            u64_at(header, at::MODULE_SIGNATURE),
        )?;

        // No sum of lengths within their limits overflows.
        let module_at = HEADER_BYTES + manifest_len;
        let end = module_at + module_len;
        let manifest =
            file.get(HEADER_BYTES..module_at).ok_or_else(|| too_short("manifest", module_at, file))?;
        let module = file.get(module_at..end).ok_or_else(|| too_short("module", end, file))?;
        let (body, trailer) = file.split_at(end);
        let signature = (!trailer.is_empty()).then(|| Signature::read_as_written(trailer)).transpose();
        let signature = signature.map_err(|source| ContainerError::Trailer { at: end, source })?;
        Ok(Self { body, manifest, module, signature })
    }

    /// The file without its signature: what is signed.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The manifest's bytes; [`Manifest::read`](crate::manifest::Manifest::read) reads them.
    pub fn manifest(&self) -> &'a [u8] {
        self.manifest
    }

    /// The module's bytes; [`Module::read`](crate::module::Module::read) reads them.
    pub fn module(&self) -> &'a [u8] {
        self.module
    }

    /// The signature, if there is one. That it is there says nothing: see [`Self::verify`].
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// Which of `keys` has signed exactly this patch.
    pub fn verify<'k>(&self, keys: &'k [PublicKey]) -> Result<&'k PublicKey, VerifyError> {
        self.signature.as_ref().ok_or(VerifyError::Unsigned)?.verify(self.body, keys)
    }

    /// The file with `signature` in place of what it has.
    pub fn signed(&self, signature: &Signature) -> Vec<u8> {
        [self.body, signature.text().as_bytes()].concat()
    }
}

/// Makes a file of its parts, without a signature.
pub fn write(manifest: &[u8], module: &[u8]) -> Result<Vec<u8>, ContainerError> {
    let parts =
        [("manifest", at::MANIFEST, manifest, MANIFEST_BYTES), ("module", at::MODULE, module, MODULE_BYTES)];
    let mut file = vec![0; HEADER_BYTES];
    put(&mut file, 0, &MAGIC);
    put(&mut file, at::VERSION, &VERSION.to_le_bytes());
    for (part, at, bytes, limit) in parts {
        let len = bytes.len() as u64;
        within(part, at, len, limit)?;
        put(&mut file, at, &len.to_le_bytes());
        file.extend_from_slice(bytes);
    }
    Ok(file)
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn check_magic(file: &[u8]) -> Result<(), ContainerError> {
    let start = &file[..file.len().min(MAGIC.len())];
    if start == MAGIC {
        return Ok(());
    }
    if start.len() < MAGIC.len() && MAGIC.starts_with(start) {
        return Err(too_short("header", HEADER_BYTES, file));
    }
    let start = start.to_vec();
    // The letters are what a transfer as text keeps.
    let letters = start.windows(3).any(|three| three == b"LUP");
    Err(if letters { ContainerError::Mangled { start } } else { ContainerError::Magic { start } })
}

fn too_short(what: &'static str, end: usize, file: &[u8]) -> ContainerError {
    ContainerError::Truncated { what, end, len: file.len() }
}

fn must_be_zero(field: &'static str, at: usize, found: u64) -> Result<(), ContainerError> {
    if found == 0 { Ok(()) } else { Err(ContainerError::NotZero { field, at, found }) }
}

fn length(
    header: &[u8; HEADER_BYTES],
    part: &'static str,
    at: usize,
    limit: usize,
) -> Result<usize, ContainerError> {
    within(part, at, u64_at(header, at), limit)
}

fn within(part: &'static str, at: usize, found: u64, limit: usize) -> Result<usize, ContainerError> {
    match usize::try_from(found) {
        Ok(len) if (1..=limit).contains(&len) => Ok(len),
        _ => Err(ContainerError::Length { part, at, found, limit }),
    }
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_apart_as_it_was_put_together() {
        let file = write(b"{}", b"module").unwrap();
        assert_eq!(file.len(), HEADER_BYTES + 8);
        let container = Container::read(&file).unwrap();
        assert_eq!((container.manifest(), container.module()), (b"{}".as_slice(), b"module".as_slice()));
        assert_eq!((container.body(), container.signature()), (file.as_slice(), None));
    }

    #[test]
    fn parts_have_limits_when_they_are_written_too() {
        for (manifest, module) in [(0, 1), (1, 0), (MANIFEST_BYTES + 1, 1), (1, MODULE_BYTES + 1)] {
            let refused = write(&vec![0; manifest], &vec![0; module]);
            assert!(matches!(refused, Err(ContainerError::Length { .. })), "{manifest} {module}");
        }
        let largest = write(&vec![0; MANIFEST_BYTES], &vec![0; MODULE_BYTES]).unwrap();
        assert!(Container::read(&largest).is_ok());
    }

    #[test]
    fn each_absurd_field_is_named() {
        let good = write(b"{}", b"module").unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            put(&mut file, at, bytes);
            Container::read(&file).unwrap_err()
        };
        for version in [0_u32, 2, u32::MAX] {
            assert_eq!(with(8, &version.to_le_bytes()), ContainerError::Version { found: version });
        }
        let zero = |field, at, found| ContainerError::NotZero { field, at, found };
        assert_eq!(with(12, &[0, 0, 1, 0]), zero("reserved field", 12, 0x1_0000));
        let room = "length of a module signature";
        for found in [1, u64::MAX] {
            assert_eq!(with(32, &found.to_le_bytes()), zero(room, 32, found));
        }
        for (part, at, limit) in [("manifest", 16, MANIFEST_BYTES), ("module", 24, MODULE_BYTES)] {
            for found in [0, limit as u64 + 1, 1 << 63, u64::MAX] {
                let wanted = ContainerError::Length { part, at, found, limit };
                assert_eq!(with(at, &found.to_le_bytes()), wanted);
            }
            let wanted = ContainerError::Truncated { what: part, end: 0, len: good.len() };
            let found = with(at, &(limit as u64).to_le_bytes());
            assert!(
                matches!(found, ContainerError::Truncated { what, .. } if what == part),
                "{found} {wanted}"
            );
        }
    }

    #[test]
    fn a_transfer_as_text_is_recognised() {
        let good = write(b"{}", b"module").unwrap();
        let stripped: Vec<u8> = good.iter().map(|byte| byte & 0x7f).collect();
        let without_cr: Vec<u8> = good.iter().copied().filter(|&byte| byte != b'\r').collect();
        let text = String::from_utf8_lossy(&good).into_owned().into_bytes();
        let more_cr: Vec<u8> = good
            .iter()
            .flat_map(|&byte| if byte == b'\n' { vec![b'\r', b'\n'] } else { vec![byte] })
            .collect();
        for changed in [stripped, without_cr, text, more_cr] {
            let error = Container::read(&changed).unwrap_err();
            assert!(matches!(error, ContainerError::Mangled { .. }), "{error}");
        }
        assert!(matches!(Container::read(b"\x7fELF and so on"), Err(ContainerError::Magic { .. })));
        assert!(matches!(Container::read(b""), Err(ContainerError::Truncated { what: "header", .. })));
    }

    #[test]
    fn no_file_is_longer_than_its_parts_can_be() {
        let mut file = write(b"{}", b"module").unwrap();
        file.resize(FILE_BYTES + 1, 0);
        assert_eq!(Container::read(&file), Err(ContainerError::TooLong { len: FILE_BYTES + 1 }));
    }
}
