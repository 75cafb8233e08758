//! A stub that a frame returns to in the place of its caller: it tells the host, and goes on to the caller
//! ([`lucos_lup::module::stubs`] draws it).

use lucos_lup::module::stubs::{BYTES, EMPTY};

use super::jump;
use crate::addr::Gva;

/// The I/O port that a stub writes to. What is written says nothing: the host knows the stub by RIP.
pub const PORT: u8 = 0xe5;

/// `out imm8, al`: changes no register and no flag (Intel SDM vol. 2B, OUT: E6 ib).
const OUT: [u8; 2] = [0xe6, PORT];

/// Where OUT is in a stub, and the jump behind it.
const OUT_AT: usize = 1;
const JUMP_AT: usize = OUT_AT + OUT.len();

/// The stub at `at` that goes on to `to`; `None` if that is further than 2 GiB.
pub fn stub(at: Gva, to: Gva) -> Option<[u8; BYTES]> {
    let jump = jump::jump(at.wrapping_add(JUMP_AT as u64), to)?;
    let mut bytes = EMPTY;
    bytes[OUT_AT..JUMP_AT].copy_from_slice(&OUT);
    bytes[JUMP_AT..].copy_from_slice(&jump);
    Some(bytes)
}

/// Where `bytes` at `at` go on to, if they are a stub.
pub fn target(at: Gva, bytes: [u8; BYTES]) -> Option<Gva> {
    let [nop, first, second, jump @ ..] = bytes;
    let is_one = nop == EMPTY[0] && [first, second] == OUT;
    jump::target(at.wrapping_add(JUMP_AT as u64), jump).filter(|_| is_one)
}

/// What a return to the stub at `at` is given as its address.
pub fn entry(at: Gva) -> Gva {
    at.wrapping_add(OUT_AT as u64)
}

/// The stub that returns to `address` come to, if there is one at all.
pub fn of_return(address: Gva) -> Option<Gva> {
    let at = Gva(address.0.wrapping_sub(OUT_AT as u64));
    at.0.is_multiple_of(BYTES as u64).then_some(at)
}

/// The stub that a vCPU with RIP at `rip` is in, if there is one at all: before OUT, or behind it.
///
/// KVM completes OUT before the exit or after it, depending on how it came to it (`arch/x86/kvm/x86.c`, `kvm_fast_pio_out` and
/// `x86_emulate_instruction`).
pub fn of_rip(rip: Gva) -> Option<Gva> {
    let within = usize::try_from(rip.0 % BYTES as u64).unwrap_or(0);
    matches!(within, OUT_AT | JUMP_AT).then(|| Gva(rip.0 - within as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Gva = Gva(0xffff_ffff_c040_0010);

    #[test]
    fn a_stub_leads_where_it_is_told_to() {
        for to in [0xffff_ffff_8123_4567, 0xffff_ffff_c040_0018, 0xffff_ffff_ff00_0000].map(Gva) {
            let bytes = stub(AT, to).unwrap();
            assert_eq!(bytes[..4], [0x90, 0xe6, 0xe5, 0xe9]);
            assert_eq!(target(AT, bytes), Some(to));
            // Neither an empty one, nor one with any other instruction in it.
            for at in 0..4 {
                let mut other = bytes;
                other[at] ^= 1;
                assert_eq!(target(AT, other), None, "{at}");
            }
        }
        assert_eq!(target(AT, EMPTY), None);
        assert_eq!(stub(AT, Gva(0xffff_8880_0000_0000)), None);
    }

    #[test]
    fn a_stub_is_known_by_where_it_is_entered_and_left() {
        assert_eq!(of_return(entry(AT)), Some(AT));
        assert_eq!(of_return(AT), None);
        let stubs: Vec<_> = (0..8).map(|offset| of_rip(AT.wrapping_add(offset))).collect();
        assert_eq!(stubs, [None, Some(AT), None, Some(AT), None, None, None, None]);
    }
}
