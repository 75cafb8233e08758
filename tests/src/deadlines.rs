//! How long things may take.
//!
//! They end a test that hangs; they measure nothing. All are several times what was seen in the emulated AMD host
//! on an idle machine, because the machine may be shared and the host's processors are threads of an emulator.

use std::time::Duration;

/// The tiny guest, from the start of the VMM to its shell.
pub(crate) const BOOT: Duration = Duration::from_mins(2);
/// The same behind an initramfs of Debian's: the guest unpacks up to 30 MB of zstd on an emulated processor.
pub(crate) const INITRAMFS_BOOT: Duration = Duration::from_mins(8);
/// The full Debian guest to its login prompt: systemd starts some forty units.
pub(crate) const DEBIAN_BOOT: Duration = Duration::from_mins(6);
/// Bochs interprets the guest and the host below it, at a tenth of QEMU's speed or less.
pub(crate) const INTEL_BOOT: Duration = Duration::from_mins(40);
/// A command in the guest's shell.
pub(crate) const COMMAND: Duration = Duration::from_mins(1);
/// A command that is real work for the guest.
pub(crate) const LONG_COMMAND: Duration = Duration::from_mins(4);
/// From the guest's last word, or a signal to the VMM, to the VMM's exit.
pub(crate) const EXIT: Duration = Duration::from_mins(1);
/// systemd stops its units; one that does not stop holds it up for 90 seconds by default.
pub(crate) const SHUTDOWN: Duration = Duration::from_mins(3);
/// A patch is applied or rolled back: its image is read, its module loaded, and it may be tried for a minute.
pub(crate) const PATCH: Duration = Duration::from_mins(4);
/// The VMM says no before any guest runs; most of it is loading the program over the test bed's file share.
pub(crate) const REFUSAL: Duration = Duration::from_mins(1);
/// Watched pages are written to often enough. The guest may crawl: whatever it does, each access is told of in turn.
pub(crate) const TRAPS: Duration = Duration::from_mins(3);
/// A round of each kind of load ends, all of them side by side, in a guest that may still catch up on what it missed.
pub(crate) const LOAD_ROUND: Duration = Duration::from_mins(8);
