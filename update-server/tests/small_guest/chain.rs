//! Stacks as calls leave them: return addresses that are behind calls, as far apart as the unwind table says.

use update_server::addr::Gva;
use update_server::image::{Base, FrameKind, Image};

/// A return address, and how many bytes of the stack its function's frame takes, the next return address included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Return {
    pub(crate) address: Gva,
    pub(crate) bytes: u64,
}

/// Where functions of a kernel are come back to.
#[derive(Debug)]
pub(crate) struct Returns {
    /// In the middle of a stack.
    pub(crate) inner: Vec<Return>,
    /// At its end.
    pub(crate) last: Gva,
}

/// Frames that take more are left out, so that a stack has room for many.
const LARGEST: u64 = 128;
/// As many are enough.
const ENOUGH: usize = 256;

impl Returns {
    /// Those of the functions of `image`.
    pub(crate) fn of(image: &Image) -> Self {
        let (_, start, len) = image.sections().find(|(name, _, _)| *name == ".text").unwrap();
        let text = image.bytes(start, len).unwrap();
        let mut inner = Vec::new();
        let mut last = None;
        for (offset, code) in text.windows(5).enumerate().filter(|(_, code)| code[0] == 0xe8) {
            let address = start.wrapping_add(offset as u64 + 5);
            let distance = i32::from_le_bytes(code[1..].try_into().unwrap());
            let target = address.wrapping_offset(distance.into());
            let begins =
                |at| matches!(image.symbols().containing(at), Some((symbol, 0)) if symbol.is_function());
            let Some(entry) = image.orc().entry(Gva(address.0 - 1)).filter(|_| begins(target)) else {
                continue;
            };
            match (entry.kind, entry.sp, u64::try_from(entry.sp_offset)) {
                (FrameKind::End, ..) => last = Some(address),
                (FrameKind::Call, Base::Sp, Ok(bytes @ 8..=LARGEST))
                    if inner.len() < ENOUGH && matches!(entry.bp, Base::Undefined | Base::PreviousSp) =>
                {
                    inner.push(Return { address, bytes });
                }
                _ => {}
            }
        }
        Self { inner, last: last.unwrap() }
    }

    /// What is on a stack of `frames` functions: offset from the stack pointer of the innermost, and the return address there.
    /// The innermost's own address comes first.
    pub(crate) fn stack(&self, frames: usize, seed: usize) -> (Gva, Vec<(u64, Gva)>) {
        let choose = |index: usize| self.inner[(seed * 31 + index * 7) % self.inner.len()];
        let mut offset = 0;
        let mut words = Vec::new();
        for index in 0..frames {
            offset += choose(index).bytes;
            let next = if index + 1 == frames { self.last } else { choose(index + 1).address };
            words.push((offset - 8, next));
        }
        (choose(0).address, words)
    }
}
