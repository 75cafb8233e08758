//! The assembly of the module's own functions.

use crate::listing::{Listing, Piece, section_name};
use crate::select::Selection;
use crate::statement::renamed;

/// Writes what was selected, as text for the assembler.
pub(crate) fn assembly(original: &Listing, fixed: &Listing, selection: &Selection) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for name in selection.shared() {
        line(&format!("\t.globl\t{name}"));
    }
    fixed.preamble.iter().for_each(|each| line(each));
    for piece in selection.pieces(fixed) {
        line(&format!("\t.section\t{}", section(&piece.section, piece)));
        for each in &piece.lines {
            match each.trim_start().strip_prefix(".section").filter(|_| !each.contains(';')) {
                Some(described) => line(&format!("\t.section\t{}", section(described.trim(), piece))),
                None => line(&renamed(each, |name| selection.symbol(original, piece, name))),
            }
        }
    }
    // By this objtool finds the key of a static call, as it does in a file of the kernel's (`include/linux/static_call.h`).
    for key in selection.keys() {
        line(&format!("\t.section\t.discard.addressable,\"aw\"\n\t.quad\t{key}"));
    }
    text
}

/// The section where a module has it: without the name of the one piece in it, which gcc was asked to put there.
fn section(described: &str, piece: &Piece) -> String {
    let name = section_name(described);
    let rest = described.split_once(',').map(|(_, rest)| format!(",{rest}")).unwrap_or_default();
    if let Some((_, strings)) = name.strip_prefix(".rodata.").and_then(|name| name.split_once(".str1.")) {
        return format!(".rodata.str1.{strings}{rest}");
    }
    match name.strip_suffix(&piece.name).and_then(|start| start.strip_suffix('.')) {
        Some(start) if !start.is_empty() => format!("{start}{rest}"),
        _ => format!("{name}{rest}"),
    }
}
