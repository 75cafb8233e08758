//! The jump that a site gets.

use crate::addr::Gva;

/// Bytes of a direct jump with a distance of 32 bits (Intel SDM vol. 2A, JMP: E9 cd).
pub const JUMP_BYTES: usize = 5;

const JUMP: u8 = 0xe9;
/// Of a direct call, which is as long (Intel SDM vol. 2A, CALL: E8 cd).
const CALL: u8 = 0xe8;

/// The jump at `from` to `to`; `None` if it is further than 2 GiB.
pub fn jump(from: Gva, to: Gva) -> Option<[u8; JUMP_BYTES]> {
    let distance = to.0.wrapping_sub(from.0.wrapping_add(JUMP_BYTES as u64)).cast_signed();
    let distance = i32::try_from(distance).ok()?.to_le_bytes();
    Some([JUMP, distance[0], distance[1], distance[2], distance[3]])
}

/// Where the jump at `from` leads to; `None` if `bytes` are none.
pub fn target(from: Gva, bytes: [u8; JUMP_BYTES]) -> Option<Gva> {
    direct(JUMP, from, bytes)
}

/// Where the direct call at `from` leads to; `None` if `bytes` are none.
pub fn call_target(from: Gva, bytes: [u8; JUMP_BYTES]) -> Option<Gva> {
    direct(CALL, from, bytes)
}

fn direct(opcode: u8, from: Gva, bytes: [u8; JUMP_BYTES]) -> Option<Gva> {
    let [first, distance @ ..] = bytes;
    let next = from.wrapping_add(JUMP_BYTES as u64);
    (first == opcode).then(|| next.wrapping_offset(i32::from_le_bytes(distance).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_where_they_are_told_to_within_two_gigabytes() {
        let from = Gva(0xffff_ffff_8100_0000);
        for to in [0xffff_ffff_c040_0010, 0xffff_ffff_8100_0005, 0xffff_ffff_8000_0000].map(Gva) {
            assert_eq!(target(from, jump(from, to).unwrap()), Some(to));
        }
        assert_eq!(jump(from, Gva(0xffff_ffff_8100_0005)), Some([0xe9, 0, 0, 0, 0]));
        assert_eq!(jump(from, Gva(0xffff_fffe_ffff_ffff)), None);
        assert_eq!(jump(from, from.wrapping_add(5 + (1 << 31))), None);
        assert_eq!(target(from, [0xe8, 0, 0, 0, 0]), None);
        assert_eq!(call_target(from, [0xe8, 1, 0, 0, 0]), Some(from.wrapping_add(6)));
        assert_eq!(call_target(from, [0xe9, 1, 0, 0, 0]), None);
    }
}
