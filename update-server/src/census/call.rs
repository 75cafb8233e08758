//! The instruction that left a return address on a stack (Intel SDM vol. 2A, CALL).

/// Whether the last of these bytes are those of a near call: E8 with 32 bits, or FF /2 in any of its forms.
pub(super) fn is_last(bytes: [u8; 7]) -> bool {
    let indirect = |len: usize| {
        let instruction = &bytes[7 - len..];
        let [0xff, form, rest @ ..] = instruction else { return false };
        let (mode, digit, base) = (form >> 6, form >> 3 & 7, form & 7);
        let sib = usize::from(mode != 3 && base == 4);
        let displacement = match mode {
            0 if base == 5 => 4,
            0 if sib == 1 && rest.first().is_some_and(|sib| sib & 7 == 5) => 4,
            1 => 1,
            2 => 4,
            _ => 0,
        };
        digit == 2 && len == 2 + sib + displacement
    };
    bytes[2] == 0xe8 || [2, 3, 4, 6, 7].into_iter().any(indirect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_last_bytes() {
        let calls: [&[u8]; 8] = [
            &[0xe8, 1, 2, 3, 4],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x14, 0x25, 1, 2, 3, 4],
            &[0xff, 0x50, 0x18],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x90, 1, 2, 3, 4],
        ];
        let padded = |bytes: &[u8]| {
            let mut all = [0x90; 7];
            all[7 - bytes.len()..].copy_from_slice(bytes);
            all
        };
        for call in calls {
            assert!(is_last(padded(call)), "{call:x?}");
        }
        for other in
            [&[0xe9, 1, 2, 3, 4][..], &[0xff, 0xe0], &[0xff, 0x25, 1, 2, 3, 4], &[0xff, 0x0d, 1, 2, 3, 4]]
        {
            assert!(!is_last(padded(other)), "{other:x?}");
        }
    }
}
