//! The buffer that a hypercall names.

use std::sync::atomic::{Ordering, fence};

use lucos_abi::{CALL_BYTES, ErrorCode};
use update_server::addr::{Gpa, Gva};
use update_server::kernel::paging::{PageTables, Unmapped};
use vm_memory::{Bytes, GuestAddress};

use super::caller::Caller;
use crate::inspect::GuestBytes;
use crate::memory::GuestMemory;

const PAGE: u64 = 4096;
/// Pages that the largest buffer touches.
const PAGES: usize = CALL_BYTES / 4096 + 1;

/// A part of a buffer that lies in one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    at: Gpa,
    len: usize,
}

/// Memory of the guest as the caller sees it.
///
/// Other vCPUs may change the page tables meanwhile. So pages are looked up before and after they are used, and a call
/// whose pages have moved is refused, which the caller may try again. That is enough: a kernel gives a page to somebody else
/// only when every processor has forgotten the old translation, and the one that calls forgets nothing while it is out
/// of the guest. A kernel that does otherwise spoils memory of its own.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    memory: &'a GuestMemory,
    tables: PageTables,
    user: bool,
    start: Gva,
    len: usize,
}

impl<'a> Buffer<'a> {
    /// The one that `caller` names, if it is one that it may name.
    pub(super) fn of(memory: &'a GuestMemory, caller: &Caller) -> Result<Self, ErrorCode> {
        let (start, user) = (Gva(caller.rcx), caller.is_user());
        let len = usize::try_from(caller.rsi).unwrap_or(usize::MAX);
        if len == 0 || len > CALL_BYTES {
            return Err(ErrorCode::BadLength);
        }
        let last = start.0.checked_add(caller.rsi - 1).ok_or(ErrorCode::BadAddress)?;
        // The upper half is the kernel's. User space gets one answer for all of it: what is mapped there is none of its
        // business.
        if user && last.cast_signed() < 0 {
            return Err(ErrorCode::BadAddress);
        }
        Ok(Self { memory, tables: caller.tables(), user, start, len })
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All its bytes.
    pub(super) fn read(&self) -> Result<Vec<u8>, ErrorCode> {
        let mut bytes = vec![0; self.len];
        let pieces = self.pieces(self.len, false)?;
        let mut rest = bytes.as_mut_slice();
        for piece in &pieces {
            let (part, behind) = rest.split_at_mut(piece.len);
            let read = self.memory.read_slice(part, GuestAddress(piece.at.0));
            read.map_err(|_| ErrorCode::BadAddress)?;
            rest = behind;
        }
        self.unless_moved(&pieces, false)?;
        Ok(bytes)
    }

    /// Puts `bytes`, which are at most as many as it has, at its start.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), ErrorCode> {
        let pieces = self.pieces(bytes.len(), true)?;
        let mut rest = bytes;
        for piece in &pieces {
            let (part, behind) = rest.split_at(piece.len);
            let written = self.memory.write_slice(part, GuestAddress(piece.at.0));
            written.map_err(|_| ErrorCode::BadAddress)?;
            rest = behind;
        }
        self.unless_moved(&pieces, true)
    }

    fn unless_moved(&self, pieces: &[Piece], write: bool) -> Result<(), ErrorCode> {
        // The second look must not be taken before the bytes are where they belong.
        fence(Ordering::SeqCst);
        let len = pieces.iter().map(|piece| piece.len).sum();
        if self.pieces(len, write)? == pieces { Ok(()) } else { Err(ErrorCode::Again) }
    }

    /// Where its first `len` bytes are now: at most [`PAGES`] pieces.
    fn pieces(&self, len: usize, write: bool) -> Result<Vec<Piece>, ErrorCode> {
        let mut pieces = Vec::with_capacity(PAGES);
        let (mut at, mut left) = (self.start, len);
        while left > 0 {
            let in_page = usize::try_from(PAGE - at.0 % PAGE).unwrap_or(left);
            let piece = Piece { at: self.find(at, write)?, len: in_page.min(left) };
            pieces.push(piece);
            left -= piece.len;
            // The buffer's last byte has an address, so what wraps around is not looked at.
            at = Gva(at.0.wrapping_add(piece.len as u64));
        }
        Ok(pieces)
    }

    /// Where the byte at `at` is, if the caller may use it.
    fn find(&self, at: Gva, write: bool) -> Result<Gpa, ErrorCode> {
        let found = self.tables.page_and_rights(&GuestBytes(self.memory), at);
        let (page, rights) = found.map_err(|unmapped| match unmapped {
            Unmapped::NotPresent { .. } => ErrorCode::Again,
            Unmapped::NotCanonical(_) | Unmapped::NotRam { .. } => ErrorCode::BadAddress,
        })?;
        if self.user && !rights.user {
            return Err(ErrorCode::BadAddress);
        }
        // The kernel, too, is held to this, whatever CR0.WP says: such a page may be shared with others.
        if write && !rights.write {
            return Err(ErrorCode::ReadOnly);
        }
        Ok(page.physical(at))
    }
}
