//! What gcc's and the kernel's names for static objects and functions tell.

use crate::listing::{Kind, Piece};

/// Tables that gcc makes: nobody compares their addresses, and many of a kernel's have the same name.
const TABLES: [&str; 3] = ["CSWTCH", "C", "__compound_literal"];

/// Static objects whose state is of no consequence when it begins anew: that a warning has been given, when a message was
/// last written (`include/linux/{once_lite,ratelimit}.h`), and lockdep's keys and names, of which stock kernels use nothing.
const FORGETFUL: [&str; 6] = ["__already_done", "__warned", "__print_once", "_rs", "__key", "__msg"];

/// Where it says which messages are wanted: each module has its own (`include/linux/dynamic_debug.h`).
const MESSAGES: &str = "__dyndbg";

/// gcc's own variants of a function, which only the callers in the same file know how to call.
const CLONES: [&str; 3] = [".constprop.", ".isra.", ".part."];

/// The name without what gcc numbers static objects by, and without the kernel's own numbers.
///
/// `count.5` of one compilation can be `count.7` of another.
pub(crate) fn base(name: &str) -> &str {
    let mut name = name;
    while let Some((start, number)) = name.rsplit_once('.') {
        if start.is_empty() || number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            break;
        }
        name = start;
    }
    let is_unique = name.starts_with("__UNIQUE_ID_");
    if is_unique { name.trim_end_matches(|c: char| c.is_ascii_digit()) } else { name }
}

/// Whether the function is known to callers in its file only, which have to take it with them.
pub(crate) fn is_clone(function: &str) -> bool {
    CLONES.iter().any(|part| function.contains(part))
}

/// Whether a copy of the object serves as well as the kernel's own.
pub(crate) fn is_copied(piece: &Piece) -> bool {
    is_constant(piece) || FORGETFUL.contains(&base(&piece.name)) || piece.section_name() == MESSAGES
}

/// Whether only what is in the object counts: text, and gcc's own tables.
pub(crate) fn is_constant(piece: &Piece) -> bool {
    let is_own = || TABLES.contains(&base(&piece.name));
    piece.kind == Kind::Literal
        || piece.kind == Kind::Object && !piece.global && !piece.is_writable() && (is_text(piece) || is_own())
}

/// Whether the object is a text, such as `__func__`.
fn is_text(piece: &Piece) -> bool {
    let mut data =
        piece.lines.iter().map(|line| line.trim()).skip_while(|line| !line.ends_with(':')).skip(1).peekable();
    data.peek().is_some() && data.all(|line| line.starts_with(".string") || line.starts_with(".ascii"))
}

/// Whether the object is there for tools and tables only, and no code refers to it.
pub(crate) fn is_note(piece: &Piece) -> bool {
    let notes = [".modinfo", ".discard.", "__ksymtab", ".printk_index", "_error_injection_whitelist"];
    notes.iter().any(|start| piece.section_name().starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_a_part_of_the_name() {
        assert_eq!(base("count.5"), "count");
        assert_eq!(base("C.12.3"), "C");
        assert_eq!(base("__UNIQUE_ID_ddebug318.5"), "__UNIQUE_ID_ddebug");
        assert_eq!(base("f.isra"), "f.isra");
        assert_eq!(base("crc32"), "crc32");
        assert_eq!(base(".5"), ".5");
        assert!(is_clone("f.isra.0") && is_clone("f.constprop.0.part.1") && !is_clone("f.cold"));
    }
}
