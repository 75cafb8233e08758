//! The kernel's own symbol table, kallsyms (kernel/kallsyms.c, scripts/kallsyms.c, Linux 6.1 and 6.12).
//!
//! A stripped kernel has no symbol that would say where it is, so it is found by its form: 256 tokens after each other, with
//! their offsets behind them, and before them the markers, the packed names and their number, which all must agree.
//! Up to 6.5 the addresses are before the names, since then they are behind the tokens.

use super::ImageError;
use super::symbols::{Symbols, SymbolsBuilder};
use crate::addr::Gva;
use crate::bytes::{align_up, i32_at, index_at, text_at, u16_at, u32_at, u64_at};
use crate::limits::SYMBOLS;

const TABLE: &str = "kallsyms";
const TOKENS: usize = 256;
/// A marker says where every 256th name begins.
const PER_MARKER: usize = 256;
/// Each label is aligned to this (scripts/kallsyms.c, `ALGN`).
const ALIGN: usize = 8;
/// The longest token that is looked for; the kernel's have up to 30 letters.
const TOKEN_MAX: usize = 128;
/// A kernel has at least these symbols, which weeds out what only looks like the tables.
const FEWEST: usize = 1000;

/// Reads the tables out of the kernel's read-only data.
pub(crate) fn read(rodata: &[u8]) -> Result<Symbols, ImageError> {
    let missing = |what: &str| ImageError::Missing {
        what: what.to_owned(),
        needed_for: "finding functions",
        option: "CONFIG_KALLSYMS_ALL",
    };
    let tokens = Tokens::find(rodata).ok_or_else(|| missing("table of kallsyms tokens in .rodata"))?;
    let names = Names::find(rodata, &tokens).ok_or_else(|| missing("table of kallsyms names in .rodata"))?;
    let addresses = Addresses::find(rodata, &tokens, &names)
        .ok_or_else(|| missing("table of kallsyms addresses in .rodata"))?;
    let mut builder = SymbolsBuilder::new(names.count);
    let mut at = names.start;
    let mut name = String::new();
    for index in 0..names.count {
        let malformed = |why: &str| ImageError::malformed(TABLE, at, why);
        let (from, len) = name_at(rodata, at).ok_or_else(|| malformed("a name is cut off"))?;
        let packed = rodata.get(from..from + len).ok_or_else(|| malformed("a name is cut off"))?;
        name.clear();
        name.extend(packed.iter().map(|&token| tokens.text(token)));
        let kind =
            name.chars().next().filter(char::is_ascii).ok_or_else(|| malformed("a name without a type"))?;
        let (address, absolute) = addresses.get(rodata, index).ok_or_else(|| malformed("no address"))?;
        builder.add(address, absolute, kind, &name[1..]);
        at = from + len;
    }
    Ok(builder.finish())
}

/// Where a packed name's tokens are: one byte of length, or two for more than 127.
fn name_at(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    match *bytes.get(at)? {
        short @ 0..0x80 => Some((at + 1, usize::from(short))),
        low => Some((at + 2, usize::from(low & 0x7f) | usize::from(*bytes.get(at + 1)?) << 7)),
    }
}

/// The pieces that names are put together from.
#[derive(Debug)]
struct Tokens<'a> {
    start: usize,
    end: usize,
    texts: Vec<&'a str>,
}

impl<'a> Tokens<'a> {
    fn find(bytes: &'a [u8]) -> Option<Self> {
        (0..bytes.len()).step_by(ALIGN).find_map(|index| Self::with_index_at(bytes, index))
    }

    /// The tokens whose offsets are at `index`.
    fn with_index_at(bytes: &'a [u8], index: usize) -> Option<Self> {
        let offset = |token: usize| u16_at(bytes, index + 2 * token).map(usize::from);
        if offset(0)? != 0 || (1..TOKENS).any(|token| offset(token) <= offset(token - 1)) {
            return None;
        }
        let last = offset(TOKENS - 1)?;
        let nearest = align_up(last + 2, ALIGN);
        let starts = (nearest..=nearest + TOKEN_MAX).step_by(ALIGN).filter_map(|len| index.checked_sub(len));
        starts.into_iter().find_map(|start| {
            let mut texts = Vec::with_capacity(TOKENS);
            let mut expected = 0;
            for token in 0..TOKENS {
                if offset(token)? != expected {
                    return None;
                }
                let text = text_at(bytes, start + expected).filter(|text| text.len() <= TOKEN_MAX)?;
                expected += text.len() + 1;
                texts.push(text);
            }
            let ends_here = align_up(start + expected, ALIGN) == index;
            ends_here.then_some(Self { start, end: align_up(index + 2 * TOKENS, ALIGN), texts })
        })
    }

    fn text(&self, token: u8) -> &'a str {
        self.texts[usize::from(token)]
    }
}

/// The packed names.
#[derive(Debug)]
struct Names {
    /// Where their number is.
    head: usize,
    start: usize,
    count: usize,
}

impl Names {
    fn find(bytes: &[u8], tokens: &Tokens<'_>) -> Option<Self> {
        (0..tokens.start).step_by(ALIGN).find_map(|head| {
            let count = index_at(bytes, head).filter(|count| (FEWEST..=SYMBOLS).contains(count))?;
            let names = Self { head, start: head + ALIGN, count };
            // The order of names, three bytes for each, is between markers and tokens or elsewhere.
            let order = align_up(3 * count, ALIGN);
            let mut ends = [Some(tokens.start), tokens.start.checked_sub(order)].into_iter().flatten();
            let markers = |end: usize| end.checked_sub(align_up(4 * count.div_ceil(PER_MARKER), ALIGN));
            let sound =
                u32_at(bytes, head + 4)? == 0 && ends.any(|end| names.agree_with(bytes, markers(end)));
            sound.then_some(names)
        })
    }

    /// Whether every marker is where a name begins, and the names end where the markers begin.
    fn agree_with(&self, bytes: &[u8], markers: Option<usize>) -> bool {
        let Some(markers) = markers.filter(|&markers| markers > self.start) else { return false };
        let mut at = self.start;
        for index in 0..self.count {
            if index % PER_MARKER == 0
                && index_at(bytes, markers + index / PER_MARKER * 4) != Some(at - self.start)
            {
                return false;
            }
            match name_at(bytes, at) {
                Some((from, len)) if len > 0 && from + len <= markers => at = from + len,
                _ => return false,
            }
        }
        align_up(at, ALIGN) == markers
    }
}

/// The addresses: 32-bit numbers that count from a base, except that those which are not negative are absolute.
#[derive(Debug)]
struct Addresses {
    offsets: usize,
    base: u64,
    /// Whether any is negative (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`). If not, all count from the base.
    negative: bool,
}

impl Addresses {
    fn find(bytes: &[u8], tokens: &Tokens<'_>, names: &Names) -> Option<Self> {
        let len = align_up(4 * names.count, ALIGN);
        let before = names.head.checked_sub(ALIGN + len).map(|offsets| (offsets, names.head - ALIGN));
        let behind = Some((tokens.end, tokens.end + len));
        [before, behind].into_iter().flatten().find_map(|(offsets, base)| {
            let base = u64_at(bytes, base).filter(|&base| base >> 63 == 1 && base.trailing_zeros() >= 12)?;
            let negative = (0..names.count)
                .any(|index| i32_at(bytes, offsets + 4 * index).is_some_and(i32::is_negative));
            let found = Self { offsets, base, negative };
            found.ascend(bytes, names.count).then_some(found)
        })
    }

    /// Whether they are sorted, as the kernel needs them to be.
    fn ascend(&self, bytes: &[u8], count: usize) -> bool {
        let mut last = Gva(0);
        (0..count).all(|index| match self.get(bytes, index) {
            Some((address, _)) if address >= last => {
                last = address;
                true
            }
            _ => false,
        })
    }

    /// The address of a symbol, and whether it is absolute: such a one does not move with the kernel.
    fn get(&self, bytes: &[u8], index: usize) -> Option<(Gva, bool)> {
        let offset = i32_at(bytes, self.offsets.checked_add(4 * index)?)?;
        Some(match (self.negative, u64::try_from(offset)) {
            (true, Ok(absolute)) => (Gva(absolute), true),
            (true, Err(_)) => (Gva(self.base.wrapping_sub(1).wrapping_add_signed(-i64::from(offset))), false),
            (false, _) => (Gva(self.base.wrapping_add(u64::from(offset.cast_unsigned()))), false),
        })
    }
}
