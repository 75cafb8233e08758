//! Text in fields of a fixed size: UTF-8, and zeros behind it.

/// Bytes of a module's name, with a zero at the end (`MODULE_NAME_LEN` of include/linux/moduleparam.h, 64-bit).
pub const MODULE_NAME_BYTES: usize = 56;
/// Bytes of a patch's name, which is that of a file.
pub const PATCH_NAME_BYTES: usize = 255;

/// The text of a field; `None` if it is no text of one line with nothing but zeros behind it.
pub fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let (text, rest) = field.split_at(end);
    let text = core::str::from_utf8(text).ok()?;
    (rest.iter().all(|&byte| byte == 0) && !text.chars().any(char::is_control)).then_some(text)
}

/// A field with as much of `text` as fits.
pub fn padded<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut field = [0; LEN];
    let end = text.floor_char_boundary(LEN);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

/// The name of a module; `None` if it is none, and with it no name of a folder below `/sys/module`.
pub fn module_name(field: &[u8]) -> Option<&str> {
    let name = text(field)?;
    let fits = (1..MODULE_NAME_BYTES).contains(&name.len());
    (fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')).then_some(name)
}

/// The name of a patch that is handed in; `None` if it is none.
pub fn patch_name(bytes: &[u8]) -> Option<&str> {
    let fits = (1..=PATCH_NAME_BYTES).contains(&bytes.len());
    text(bytes).filter(|name| fits && name.len() == bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_with_zeros_behind_it_is_text() {
        assert_eq!(text(b"6.1.0\0\0"), Some("6.1.0"));
        assert_eq!(text(b"full"), Some("full"));
        assert_eq!(text(b""), Some(""));
        for wrong in [&b"a\0b"[..], b"a\nb", b"\x1b[2J", b"\xff\0"] {
            assert_eq!(text(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_off_between_characters() {
        assert_eq!(&padded::<8>("abc"), b"abc\0\0\0\0\0");
        assert_eq!(&padded::<4>("abcé"), b"abc\0");
        assert_eq!(&padded::<2>("abc"), b"ab");
    }

    #[test]
    fn names_of_modules_are_no_paths() {
        assert_eq!(module_name(&padded::<MODULE_NAME_BYTES>("lucos_fix_1")), Some("lucos_fix_1"));
        for wrong in ["", "..", "a/b", "a b", "a-b"] {
            assert_eq!(module_name(&padded::<MODULE_NAME_BYTES>(wrong)), None, "{wrong}");
        }
        // The kernel wants a zero behind it.
        assert_eq!(module_name(&[b'a'; MODULE_NAME_BYTES]), None);
    }

    #[test]
    fn names_of_patches_are_whole() {
        assert_eq!(patch_name(b"fix.lup"), Some("fix.lup"));
        for wrong in [&b""[..], b"fix\0", &[b'a'; PATCH_NAME_BYTES + 1]] {
            assert_eq!(patch_name(wrong), None);
        }
    }
}
