//! Our terminal, while a host has it.

use std::process::{Command, Stdio};

use crate::command::{command, run};

/// The settings of our terminal, put back when dropped: QEMU makes it raw, and is killed before it can undo that.
#[derive(Debug)]
pub(super) struct Restore(Option<String>);

impl Restore {
    /// Remembers the settings.
    pub(super) fn new() -> Self {
        Self(run(stty().arg("-g"), "read the terminal's settings").ok().map(|saved| saved.trim().to_owned()))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            // A terminal that has gone away needs no settings.
            let _ = run(stty().arg(saved), "restore the terminal");
        }
    }
}

/// Arguments for the host's `stty` that give its terminal the size of ours.
pub(super) fn size() -> String {
    let size = run(stty().arg("size"), "ask the terminal for its size").unwrap_or_default();
    match size.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        [rows, columns] if rows != "0" => format!("rows {rows} cols {columns}"),
        _ => "rows 24 cols 80".to_owned(),
    }
}

/// It speaks of the terminal that is its standard input.
fn stty() -> Command {
    let mut stty = command("stty");
    stty.stdin(Stdio::inherit());
    stty
}
