//! What a machine should be like.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Keyboard, Vm};
use crate::harness;
use crate::images;
use crate::pty::Pty;
use crate::transcript::Transcript;

pub(super) const API_SOCKET: &str = "api.sock";
pub(super) const AGENT_SOCKET: &str = "agent.sock";

/// Where the guest's console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Console {
    Pipes,
    Pty,
    Elsewhere,
}

/// The arguments of a `lucos-vmm` to be.
#[derive(Debug)]
pub(crate) struct Builder {
    arguments: Vec<OsString>,
    cmdline: String,
    console: Console,
    patience: u32,
}

impl Builder {
    pub(super) fn new(kernel: &str) -> Result<Self> {
        let builder =
            Self { arguments: Vec::new(), cmdline: String::new(), console: Console::Pipes, patience: 1 };
        Ok(builder.arg("--kernel", images::image(kernel)?))
    }

    /// Only what the configuration file says.
    pub(crate) fn from_config(file: &Path) -> Self {
        let builder =
            Self { arguments: Vec::new(), cmdline: String::new(), console: Console::Elsewhere, patience: 1 };
        builder.arg("--config", file)
    }

    fn arg(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([flag.into(), value.into()]);
        self
    }

    /// Boots with an initramfs.
    pub(crate) fn initrd(self, image: &str) -> Result<Self> {
        Ok(self.arg("--initrd", images::image(image)?))
    }

    /// Boots with the initramfs in this file.
    pub(crate) fn initrd_file(self, path: &Path) -> Self {
        self.arg("--initrd", path)
    }

    /// Has the VMM say more of what it does.
    pub(crate) fn verbose(self) -> Self {
        self.arg("--log-level", "info")
    }

    /// Adds a disk.
    pub(crate) fn disk(self, path: &Path) -> Self {
        self.arg("--disk", path)
    }

    /// Adds a disk that the guest may not write to.
    pub(crate) fn read_only_disk(self, path: &Path) -> Self {
        let mut value = OsString::from("path=");
        value.push(path);
        value.push(",readonly=on");
        self.arg("--disk", value)
    }

    /// Sets the number of vCPUs.
    pub(crate) fn cpus(self, count: u32) -> Self {
        self.arg("--cpus", count.to_string())
    }

    /// Sets the size of guest memory.
    pub(crate) fn memory(self, size: &str) -> Self {
        self.arg("--memory", size)
    }

    /// Adds to the kernel's command line.
    pub(crate) fn cmdline(mut self, text: &str) -> Self {
        if !self.cmdline.is_empty() {
            self.cmdline.push(' ');
        }
        self.cmdline.push_str(text);
        self
    }

    /// Adds a network interface on a tap.
    pub(crate) fn net(self, tap: &str) -> Self {
        self.arg("--net", format!("tap={tap}"))
    }

    /// Offers the agent's serial port.
    pub(crate) fn with_agent(self, folder: &Path) -> Self {
        self.arg("--agent", folder.join(AGENT_SOCKET))
    }

    /// Takes patches that the secret key of this one has signed.
    pub(crate) fn patch_key(self, key: &Path) -> Self {
        self.arg("--patch-key", key)
    }

    /// Takes patches from inside the guest that are signed.
    pub(crate) fn patches_from_inside(self) -> Self {
        self.arg("--guest-patches", "signed")
    }

    /// Waits longer for everything: the host interprets each instruction.
    pub(crate) fn on_a_slow_host(mut self) -> Self {
        self.patience = 15;
        self
    }

    /// Runs it on a terminal.
    pub(crate) fn on_a_terminal(mut self) -> Self {
        self.console = Console::Pty;
        self
    }

    /// Sends the console somewhere else.
    pub(crate) fn serial(mut self, place: &str) -> Self {
        self.console = Console::Elsewhere;
        self.arg("--serial", place)
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Vm> {
        let folder = images::folder()?;
        self.start_in(folder)
    }

    /// Starts it with its sockets in this folder.
    pub(crate) fn start_in(mut self, folder: tempfile::TempDir) -> Result<Vm> {
        let api = folder.path().join(API_SOCKET);
        if !self.cmdline.is_empty() {
            let cmdline = std::mem::take(&mut self.cmdline);
            self = self.arg("--cmdline", cmdline);
        }
        let mut command = Command::new(images::program("lucos-vmm")?);
        command.args(&self.arguments).arg("--api-socket").arg(api).stderr(Stdio::piped());
        let pty = (self.console == Console::Pty).then(Pty::new).transpose()?;
        match &pty {
            Some(pty) => command.stdin(pty.terminal()?).stdout(pty.terminal()?),
            None => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        // The command holds the terminal's descriptors too.
        drop(command);
        let console = match (&pty, child.stdout.take()) {
            (Some(pty), _) => Transcript::of("the guest's console", pty.ours()?),
            (None, Some(out)) => Transcript::of("the guest's console", out),
            (None, None) => anyhow::bail!("lucos-vmm has no standard output"),
        };
        let messages = Transcript::of("lucos-vmm", child.stderr.take().context("no standard error")?);
        let keyboard = match (&pty, child.stdin.take()) {
            (Some(pty), _) => Keyboard::Pty(pty.ours()?),
            (None, Some(pipe)) if self.console == Console::Pipes => Keyboard::Pipe(pipe),
            _ => Keyboard::None,
        };
        harness::watch(&console, &messages);
        Ok(Vm { child, keyboard, console, messages, pty, folder, commands: 0, patience: self.patience })
    }
}
