//! The kernel's types, BTF (Documentation/bpf/btf.rst; include/uapi/linux/btf.h, Linux 6.12).
//!
//! Only what locates data is read: sizes and members of structures and unions, and values of enumerations. Every structure
//! that a kernel has is found by its name, because offsets change with each version and configuration.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::ImageError;
use crate::bytes::{i32_at, index_at, text_at, u16_at, u32_at};
use crate::limits::{TYPE_DEPTH, TYPES};

const TABLE: &str = ".BTF";
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Where a member lies in its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Offset of its first bit, in bits.
    pub bit_offset: u64,
    /// Its width in bits: that of its type, or less for a bit-field.
    pub bits: u64,
}

impl Field {
    /// Its offset in bytes; for a bit-field that of the byte with its first bit.
    pub fn offset(&self) -> u64 {
        self.bit_offset / 8
    }

    /// Its size in bytes; for a bit-field that of the bytes with a bit of it.
    pub fn size(&self) -> u64 {
        (self.bit_offset % 8 + self.bits).div_ceil(8)
    }
}

/// Why a type or member is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// No structure or union has this name.
    #[error("the kernel has no `struct {0}`")]
    NoStruct(String),
    /// The structure has no such member.
    #[error("the kernel's `struct {structure}` has no member `{member}`")]
    NoMember {
        /// The structure that was looked at.
        structure: String,
        /// The member's path in it.
        member: String,
    },
    /// No enumeration has such a value.
    #[error("the kernel has no enumerator `{0}`")]
    NoEnumerator(String),
}

/// One type: where its description begins.
#[derive(Debug, Clone, Copy)]
struct Type {
    at: u32,
}

/// The types of one kernel.
#[derive(Clone)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    strings_end: usize,
    /// By type number; number 0 is `void` and has no description.
    types: Vec<Type>,
    /// Structures and unions with members, by name.
    structs: HashMap<String, u32>,
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("types", &self.types.len()).finish_non_exhaustive()
    }
}

impl Btf {
    /// Reads a `.BTF` section.
    pub fn read(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let malformed = |at, why: &str| ImageError::malformed(TABLE, at, why);
        let field = |at| index_at(&bytes, at).ok_or_else(|| malformed(at, "the header is cut off"));
        if u16_at(&bytes, 0) != Some(MAGIC) {
            return Err(malformed(0, "it does not begin with 0xeb9f"));
        }
        let header = field(4)?;
        let part = |offset: usize, len: usize| {
            let start = header.checked_add(offset)?;
            let end = start.checked_add(len)?;
            (header >= HEADER && end <= bytes.len()).then_some(start..end)
        };
        let descriptions =
            part(field(8)?, field(12)?).ok_or_else(|| malformed(8, "the types are cut off"))?;
        let strings = part(field(16)?, field(20)?).ok_or_else(|| malformed(16, "the strings are cut off"))?;
        let mut types = vec![Type { at: 0 }];
        let mut at = descriptions.start;
        while at < descriptions.end {
            let len = length(&bytes, at).ok_or_else(|| malformed(at, "a type of unknown kind"))?;
            if types.len() >= TYPES || at + len > descriptions.end {
                return Err(malformed(at, "too many types, or one that is cut off"));
            }
            types.push(Type { at: u32::try_from(at).map_err(|_| malformed(at, "larger than 4 GiB"))? });
            at += len;
        }
        let (strings, strings_end) = (strings.start, strings.end);
        let mut btf = Self { bytes, strings, strings_end, types, structs: HashMap::new() };
        for number in 1..btf.types.len() {
            if matches!(btf.kind(number), Some(STRUCT | UNION))
                && let (Some(name), Ok(number)) = (btf.name(number), u32::try_from(number))
                && !name.is_empty()
            {
                // Two files may each have a structure of one name; the first is in the most used headers.
                let name = name.to_owned();
                btf.structs.entry(name).or_insert(number);
            }
        }
        Ok(btf)
    }

    /// Bytes that `struct NAME` takes.
    pub fn size_of(&self, structure: &str) -> Result<u64, TypeError> {
        let number = self.find(structure)?;
        let size = self.size(number, 0);
        size.ok_or_else(|| TypeError::NoStruct(structure.to_owned()))
    }

    /// Where a member of `struct STRUCTURE` lies: `path` has a name for each level, with dots between, and goes
    /// through members without a name, and to the first element of an array, by itself.
    pub fn field(&self, structure: &str, path: &str) -> Result<Field, TypeError> {
        let missing = || TypeError::NoMember { structure: structure.to_owned(), member: path.to_owned() };
        let mut number = self.find(structure)?;
        let mut bit_offset = 0;
        let mut bits = 0;
        for name in path.split('.') {
            let found = self.member(self.element(number), name, 0, &mut HashSet::new());
            let (member, field) = found.ok_or_else(missing)?;
            (number, bits) = (member, field.bits);
            bit_offset += field.bit_offset;
        }
        Ok(Field { bit_offset, bits })
    }

    /// The offset of such a member, in bytes.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u64, TypeError> {
        self.field(structure, path).map(|field| field.offset())
    }

    /// Whether `struct STRUCTURE` is there with such a member.
    pub fn has(&self, structure: &str, path: &str) -> bool {
        self.field(structure, path).is_ok()
    }

    /// The value of an enumerator. Of several with one name it is the first.
    pub fn enumerator(&self, name: &str) -> Result<i64, TypeError> {
        let value = (1..self.types.len()).find_map(|number| {
            let at = self.types[number].at as usize;
            let wide = self.kind(number)? == ENUM64;
            let (from, step) = (at + 12, if wide { 12 } else { 8 });
            if !wide && self.kind(number)? != ENUM {
                return None;
            }
            (0..self.count(number)).map(|index| from + index * step).find_map(|at| {
                let own = self.string(index_at(&self.bytes, at)?)?;
                let low = i32_at(&self.bytes, at + 4)?;
                let high = if wide { i32_at(&self.bytes, at + 8)? } else { low >> 31 };
                (own == name).then_some(i64::from(high) << 32 | i64::from(low.cast_unsigned()))
            })
        });
        value.ok_or_else(|| TypeError::NoEnumerator(name.to_owned()))
    }

    fn find(&self, structure: &str) -> Result<usize, TypeError> {
        let number = self.structs.get(structure).ok_or_else(|| TypeError::NoStruct(structure.to_owned()))?;
        Ok(*number as usize)
    }

    /// A member by name, with its type's number; its offset counts from the start of the type `number`. In what was `seen` it is
    /// not: structures without a name that hold each other twice would be searched for ever.
    fn member(
        &self,
        number: usize,
        name: &str,
        depth: usize,
        seen: &mut HashSet<usize>,
    ) -> Option<(usize, Field)> {
        if depth > TYPE_DEPTH || !matches!(self.kind(number)?, STRUCT | UNION) || !seen.insert(number) {
            return None;
        }
        let at = self.types[number].at as usize;
        let has_bit_fields = u32_at(&self.bytes, at + 4)? >> 31 == 1;
        (0..self.count(number)).map(|index| at + 12 + index * 12).find_map(|at| {
            let own = self.string(index_at(&self.bytes, at)?)?;
            let kind = index_at(&self.bytes, at + 4)?;
            let offset = u32_at(&self.bytes, at + 8)?;
            let (bit_offset, width) =
                if has_bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if own == name {
                let bits = if width == 0 { self.size(kind, 0)?.checked_mul(8)? } else { u64::from(width) };
                return Some((kind, Field { bit_offset: u64::from(bit_offset), bits }));
            }
            if !own.is_empty() {
                return None;
            }
            let (kind, mut field) = self.member(self.bare(kind), name, depth + 1, seen)?;
            field.bit_offset += u64::from(bit_offset);
            Some((kind, field))
        })
    }

    /// The type itself, or if it is an array that of its elements.
    fn element(&self, number: usize) -> usize {
        let number = self.bare(number);
        match self.kind(number) {
            Some(ARRAY) => self.bare(index_at(&self.bytes, self.types[number].at as usize + 12).unwrap_or(0)),
            _ => number,
        }
    }

    /// The type behind names and qualifiers.
    fn bare(&self, mut number: usize) -> usize {
        for _ in 0..TYPE_DEPTH {
            match self.kind(number) {
                Some(TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) => number = self.referred(number),
                _ => break,
            }
        }
        number
    }

    /// Bytes that a value of the type takes.
    fn size(&self, number: usize, depth: usize) -> Option<u64> {
        if depth > TYPE_DEPTH {
            return None;
        }
        let number = self.bare(number);
        let at = self.types.get(number)?.at as usize;
        match self.kind(number)? {
            INT | STRUCT | UNION | ENUM | ENUM64 | FLOAT => u32_at(&self.bytes, at + 8).map(u64::from),
            PTR => Some(8),
            ARRAY => {
                let element = self.size(index_at(&self.bytes, at + 12)?, depth + 1)?;
                element.checked_mul(u64::from(u32_at(&self.bytes, at + 20)?))
            }
            _ => None,
        }
    }

    fn kind(&self, number: usize) -> Option<u32> {
        if number == 0 {
            return None;
        }
        Some(u32_at(&self.bytes, self.types.get(number)?.at as usize + 4)? >> 24 & 0x1f)
    }

    fn count(&self, number: usize) -> usize {
        u16_at(&self.bytes, self.types[number].at as usize + 4).map_or(0, usize::from)
    }

    fn referred(&self, number: usize) -> usize {
        index_at(&self.bytes, self.types[number].at as usize + 8).unwrap_or(0)
    }

    fn name(&self, number: usize) -> Option<&str> {
        self.string(index_at(&self.bytes, self.types.get(number)?.at as usize)?)
    }

    fn string(&self, offset: usize) -> Option<&str> {
        text_at(&self.bytes[..self.strings_end], self.strings.checked_add(offset)?)
    }
}

/// Bytes that the description of a type takes.
fn length(bytes: &[u8], at: usize) -> Option<usize> {
    let info = u32_at(bytes, at + 4)?;
    let count = (info & 0xffff) as usize;
    let more = match info >> 24 & 0x1f {
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => count * 12,
        ENUM | FUNC_PROTO => count * 8,
        _ => return None,
    };
    Some(12 + more)
}
