//! Text that a guest has made up, as it can be shown.

use std::fmt::Write;

/// `bytes` as text for a terminal, a log or JSON: what acts on a terminal, cannot be seen or is no UTF-8 is escaped, as in `\u{1b}`
/// and `\xff`, and so is the backslash.
///
/// Text without a backslash stands for the same bytes, and each other text has one. So whoever looks for a name of printable
/// characters, as those of functions, modules and sections are, finds it only where the guest has that name to the byte.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                // Rust's literals end with them, and nothing else here.
                '\'' | '"' => text.push(character),
                _ => text.extend(character.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_as_they_are() {
        for name in
            ["", "__x64_sys_pause.cold", "kworker/0:1-events", "(sd-pam)", "it's \"ö\" 日本", ".smp_locks"]
        {
            assert_eq!(shown(name.as_bytes()), name);
        }
    }

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        let table: [(&[u8], &str); 7] = [
            (b"\x1b]0;owned\x07", "\\u{1b}]0;owned\\u{7}"),
            (b"a\r\nb\t", "a\\r\\nb\\t"),
            (b"\x7f", "\\u{7f}"),
            // CSI in one character, and what turns the direction of text.
            ("\u{9b}2J\u{202e}".as_bytes(), "\\u{9b}2J\\u{202e}"),
            // The same byte alone, and a character that was cut off.
            (b"\x9b2J", "\\x9b2J"),
            (b"caf\xc3", "caf\\xc3"),
            (b"\\u{1b}", "\\\\u{1b}"),
        ];
        for (bytes, expected) in table {
            assert_eq!(shown(bytes), expected);
        }
    }

    #[test]
    fn other_bytes_are_other_text() {
        let mut texts: Vec<String> = (0..=u8::MAX).map(|byte| shown(&[byte, b'a'])).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 256);
    }
}
