//! A VMM that runs a guest.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::console::{Console, Line};
use crate::vmm::{Machine, Vmm};

/// Many times what the slowest host of the test bed takes for anything that is waited for.
const LIMIT: Duration = Duration::from_mins(1);
/// The first line of the tiny guest's init.
const INIT: &str = "lucos-guest: init reached";

/// How often something is tried that a guest which stands still can spoil.
const TRIES: u8 = 3;

/// Does `attempt`, again if it fails, and says so: on an emulated host a guest stands still now and then, and a
/// measurement of many boots would hardly ever end without this. A time that was not measured is no sample.
pub(crate) fn insist<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    for left in (1..TRIES).rev() {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => eprintln!("lucos-bench: once more ({left} left), because {error:#}"),
        }
    }
    attempt()
}

/// A guest, ended when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    vmm: Vmm,
    child: Child,
    console: Console,
}

impl Guest {
    /// Starts `machine`; times of its console count from here.
    pub(crate) fn start(vmm: Vmm, machine: &Machine) -> Result<Self> {
        let mut command = vmm.command(machine);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = child.stdout.take().context("the VMM has no output")?;
        Ok(Self { vmm, child, console: Console::follow(output, started) })
    }

    /// Waits for the next line with `marker` in it.
    pub(crate) fn line_with(&mut self, marker: &str) -> Result<Line> {
        self.console.line_with(marker, LIMIT).with_context(|| format!("under {}", self.vmm.name()))
    }

    /// The time from the VMM's start to the guest's init.
    pub(crate) fn until_init(&mut self) -> Result<Duration> {
        Ok(self.line_with(INIT)?.at)
    }

    /// The VMM's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest has switched off.
    pub(crate) fn off(mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", self.vmm.name());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the guest under {} does not switch off", self.vmm.name());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
