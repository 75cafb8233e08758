//! The guest's shell on its serial console.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Vm;
use crate::deadlines::COMMAND;
use crate::transcript::plain;

/// What the tiny guest's init says first.
const INIT: &str = "lucos-guest: init reached, ";

impl Vm {
    /// Waits for the tiny guest's init; returns how many vCPUs are online.
    pub(crate) fn init(&self, limit: Duration) -> Result<u32> {
        self.expect(INIT, limit * self.patience)?;
        let online = self.expect(" cpus online", COMMAND * self.patience)?;
        online.trim().parse().with_context(|| format!("{online:?} is no number of CPUs"))
    }

    /// Waits for the tiny guest's shell; returns how many vCPUs are online.
    pub(crate) fn shell(&mut self, limit: Duration) -> Result<u32> {
        let online = self.init(limit)?;
        self.expect("# ", COMMAND * self.patience)?;
        Ok(online)
    }

    /// Logs into the Debian guest.
    pub(crate) fn log_in(&mut self, limit: Duration) -> Result<()> {
        self.expect("login: ", limit)?;
        self.type_keys(b"root\r")?;
        // The shell's prompt comes after the message of the day.
        self.expect("# ", COMMAND * self.patience)?;
        Ok(())
    }

    /// Runs a command, which must succeed; returns what it printed.
    pub(crate) fn run(&mut self, command: &str) -> Result<String> {
        self.run_within(command, COMMAND)
    }

    /// The same for a command that takes longer than most.
    pub(crate) fn run_within(&mut self, command: &str, limit: Duration) -> Result<String> {
        let (output, status) = self.run_any(command, limit)?;
        ensure!(status == 0, "in the guest, `{command}` ended with {status}: {output}");
        Ok(output)
    }

    /// Runs a command; returns what it printed, and its exit status.
    pub(crate) fn run_any(&mut self, command: &str, limit: Duration) -> Result<(String, i32)> {
        self.commands += 1;
        let number = self.commands;
        // The shell echoes this line, but the marks become whole only when printf prints them.
        let line = format!(
            "printf '<%s-%s>\\n' begin {number}; {command}; printf '\\n<%s-%s:%s>\\n' end {number} $?\r"
        );
        self.type_keys(line.as_bytes())?;
        let what = || format!("in the guest, `{command}` did not end");
        self.expect(&format!("<begin-{number}>"), limit * self.patience).with_context(what)?;
        let output = self.expect(&format!("<end-{number}:"), limit * self.patience).with_context(what)?;
        let status = self.expect(">", COMMAND * self.patience).with_context(what)?;
        let status = status.parse().with_context(|| format!("{status:?} is no exit status"))?;
        Ok((plain(&output).trim().to_owned(), status))
    }

    /// Types a line into the shell and does not wait for what it does.
    pub(crate) fn type_line(&mut self, line: &str) -> Result<()> {
        self.type_keys(format!("{line}\r").as_bytes())
    }

    /// Ends the tiny guest with clean file systems.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.type_line("sync; mount -o remount,ro /; poweroff -f")?;
        self.expect_exit(0, crate::deadlines::EXIT * self.patience)
    }
}
