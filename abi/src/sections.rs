//! Where the sections of a module are, as text: a line for each, with its name, a space and its address.
//!
//! ```text
//! .text 0xffffffffc0a52000
//! .data 0xffffffffc0a54000
//! ```

use core::fmt;

/// Bytes of a section's name, at most: it is the name of a file.
const NAME_BYTES: usize = 255;

/// One section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its first byte; 0 where the kernel hides addresses.
    pub address: u64,
}

impl<'a> Section<'a> {
    /// A section, unless a name like this has no place in a line.
    pub fn new(name: &'a str, address: u64) -> Option<Self> {
        let fits = (1..=NAME_BYTES).contains(&name.len());
        (fits && name.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Self { name, address })
    }
}

/// A line that does not say where a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line that does not say where a section is")
    }
}

impl core::error::Error for Malformed {}

/// Writes the line of `section`.
pub fn line(section: Section<'_>, to: &mut impl fmt::Write) -> fmt::Result {
    writeln!(to, "{} {:#018x}", section.name, section.address)
}

/// Reads the lines of `text`.
pub fn sections(text: &[u8]) -> impl Iterator<Item = Result<Section<'_>, Malformed>> {
    text.split_inclusive(|&byte| byte == b'\n').map(|line| section(line).ok_or(Malformed))
}

fn section(line: &[u8]) -> Option<Section<'_>> {
    let line = core::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (name, address) = line.split_once(' ')?;
    let digits = address.strip_prefix("0x")?;
    // A sign is what `from_str_radix` would take, too.
    let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    Section::new(name, u64::from_str_radix(digits, 16).ok().filter(|_| all)?)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn what_is_written_is_read() {
        let all = [
            Section::new(".text", 0xffff_ffff_c0a5_2000).unwrap(),
            Section::new(".gnu.linkonce.this_module", 0).unwrap(),
        ];
        let mut text = String::new();
        for section in all {
            line(section, &mut text).unwrap();
        }
        assert_eq!(sections(text.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap(), all);
        assert_eq!(sections(b"").count(), 0);
    }

    #[test]
    fn anything_else_is_malformed() {
        let long = std::format!("{} 0x0\n", "x".repeat(256));
        for wrong in [
            "\n",
            ".text\n",
            ".text 0x1",
            ".text 1\n",
            " 0x1\n",
            ".te xt 0x1\n",
            ".text 0x+1\n",
            ".text 0x\n",
            &long,
        ] {
            assert_eq!(sections(wrong.as_bytes()).next(), Some(Err(Malformed)), "{wrong:?}");
        }
        assert_eq!(sections(b".text 0x10000000000000000\n").next(), Some(Err(Malformed)));
        assert_eq!(sections(b"\xff 0x1\n").next(), Some(Err(Malformed)));
        assert_eq!(Section::new("a\nb", 0), None);
    }
}
