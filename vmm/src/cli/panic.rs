//! What happens when a thread of the VMM panics.

use std::io::{self, Write};
use std::panic;
use std::process;

use super::ExitStatus;
use crate::console::RawTerminal;

/// Makes a panic of any thread end the process, with the terminal in order and [`ExitStatus::HostFailure`].
///
/// A VMM that has lost a thread is neither alive nor dead: its guest hangs, a pause never ends. Ending at
/// once is what a guest is prepared for: to it, and to its disks, it is a power cut.
pub fn end_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        RawTerminal::restore();
        report(info);
        let told = writeln!(
            io::stderr(),
            "lucos-vmm: this is a bug in lucos-vmm, which ends here; please report it with the lines above and the \
             output of `lucos-vmm doctor`"
        );
        drop(told); // nobody listens any more
        process::exit(i32::from(ExitStatus::HostFailure.code()));
    }));
}
