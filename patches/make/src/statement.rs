//! One line of assembly: where symbols stand in it.

/// What a symbol's name is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is defined here, or a directive says something of it.
    Said,
    /// It is jumped to or called.
    Branch,
    /// Its address is taken, or what is there is read or written.
    Address,
}

/// A name in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    /// Where it begins in the line.
    pub(crate) at: usize,
    /// The name.
    pub(crate) text: &'a str,
    /// What it is used for.
    pub(crate) used: Use,
}

/// Every name in a line that can be a symbol's: no register, instruction, directive, number, text or comment.
///
/// A second word of an instruction with a prefix (`lock incl`) is taken for one, too; nobody has a symbol of that name.
pub(crate) fn names(line: &str) -> Vec<Name<'_>> {
    let bytes = line.as_bytes();
    let mut found: Vec<Name<'_>> = Vec::new();
    // The word that a statement begins with, once it has been seen: it tells what the others are.
    let mut first: Option<&str> = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_text(bytes, at),
            b'#' => break,
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                at = line[at..].find("*/").map_or(bytes.len(), |end| at + end + 2);
            }
            b';' => {
                first = None;
                at += 1;
            }
            // Registers and operators of the assembler; types and flags.
            b'%' | b'@' => at = end_of_word(bytes, at + 1),
            _ if byte.is_ascii_digit() => at = end_of_word(bytes, at),
            _ if is_part(byte) => {
                let end = end_of_word(bytes, at);
                let text = &line[at..end];
                let next = line[end..].trim_start();
                match first {
                    _ if text == "." => {}
                    None if next.starts_with(':') => found.push(Name { at, text, used: Use::Said }),
                    None if next.starts_with('=') => {
                        found.push(Name { at, text, used: Use::Said });
                        first = Some("=");
                    }
                    None => first = Some(text),
                    Some(what) => found.push(Name { at, text, used: used(what, &line[..at]) }),
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    found
}

fn used(first: &str, before: &str) -> Use {
    match first {
        ".type" | ".size" | ".globl" | ".weak" | ".hidden" | ".local" | ".set" | ".comm" => Use::Said,
        _ if before.trim_end().ends_with('*') => Use::Address,
        _ if first.starts_with('j') || first.starts_with("call") => Use::Branch,
        _ => Use::Address,
    }
}

/// Returns the line with each name replaced that `new` knows another one for.
pub(crate) fn renamed(line: &str, mut new: impl FnMut(&Name<'_>) -> Option<String>) -> String {
    let mut text = String::with_capacity(line.len() + 16);
    let mut done = 0;
    for name in names(line) {
        if let Some(other) = new(&name) {
            text.push_str(&line[done..name.at]);
            text.push_str(&other);
            done = name.at + name.text.len();
        }
    }
    text.push_str(&line[done..]);
    text
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')
}

fn end_of_word(bytes: &[u8], from: usize) -> usize {
    bytes.get(from..).map_or(from, |rest| from + rest.iter().take_while(|byte| is_part(**byte)).count())
}

fn end_of_text(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<(&str, Use)> {
        names(line).into_iter().map(|name| (name.text, name.used)).collect()
    }

    #[test]
    fn names_are_told_from_all_else() {
        assert_eq!(texts("\tmovl\tipc_mni(%rip), %eax"), [("ipc_mni", Use::Address)]);
        assert_eq!(
            texts("\tmovq $foo+8, %gs:bar(%rip) # baz"),
            [("foo", Use::Address), ("bar", Use::Address)]
        );
        assert_eq!(texts("1:\tcall\t__fentry__"), [("__fentry__", Use::Branch)]);
        assert_eq!(texts("\tcall *ops+16(%rip)"), [("ops", Use::Address)]);
        assert_eq!(texts("\tjne\t.L4"), [(".L4", Use::Branch)]);
        assert_eq!(texts("foo.cold:"), [("foo.cold", Use::Said)]);
        assert_eq!(texts("\t.size\tfoo, .-foo"), [("foo", Use::Said), ("foo", Use::Said)]);
        assert_eq!(texts("\t.string \"a \\\" b; c\""), []);
        assert_eq!(
            texts(" .long 1b - ., x - .; /* y */ .quad z"),
            [("x", Use::Address), ("z", Use::Address)]
        );
        assert_eq!(texts("\t.type\tf, @function"), [("f", Use::Said)]);
    }

    #[test]
    fn only_whole_names_are_replaced() {
        let new = |name: &Name<'_>| (name.text == "f").then(|| "g".to_owned());
        assert_eq!(
            renamed("f: call f.cold; jmp f; .string \"f\"", new),
            "g: call f.cold; jmp g; .string \"f\""
        );
    }

    #[test]
    fn odd_text_is_no_trouble() {
        for line in ["\"", "\"\\", "/*", "%", "@", "é: call ü", "a: b: c", ";;"] {
            let _ = renamed(line, |_| Some("x".to_owned()));
        }
    }
}
