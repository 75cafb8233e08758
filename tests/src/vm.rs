//! A running `lucos-vmm`.
//!
//! ```no_run
//! let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).cpus(2).start()?;
//! vm.shell(BOOT)?;
//! assert_eq!(vm.run("nproc")?.trim(), "2");
//! vm.lucos("pause")?;
//! ```

mod builder;
mod diagnosis;
mod shell;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) use builder::Builder;

use crate::images;
use crate::process;
use crate::pty::Pty;
use crate::transcript::Transcript;

/// One VMM with its guest; killed when dropped.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    keyboard: Keyboard,
    console: Arc<Transcript>,
    messages: Arc<Transcript>,
    pty: Option<Pty>,
    folder: tempfile::TempDir,
    commands: u32,
    /// How many times longer than usual is waited.
    patience: u32,
}

/// The way to the guest's serial input.
#[derive(Debug)]
enum Keyboard {
    Pipe(ChildStdin),
    Pty(File),
    None,
}

impl Vm {
    /// Describes a machine that boots the kernel image `kernel`.
    pub(crate) fn builder(kernel: &str) -> Result<Builder> {
        Builder::new(kernel)
    }

    /// How many times longer than usual everything takes on this host.
    pub(crate) fn patience(&self) -> u32 {
        self.patience
    }

    /// What the guest says on its console.
    pub(crate) fn console(&self) -> &Transcript {
        &self.console
    }

    /// What the VMM says on standard error.
    pub(crate) fn messages(&self) -> &Transcript {
        &self.messages
    }

    /// The terminal that it runs on.
    pub(crate) fn pty(&self) -> Result<&Pty> {
        self.pty.as_ref().context("this machine was not started on a terminal")
    }

    /// Where the agent's serial port is offered.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.folder.path().join(builder::AGENT_SOCKET)
    }

    /// Waits until the guest has said `text`; returns what came before it.
    pub(crate) fn expect(&self, text: &str, limit: Duration) -> Result<String> {
        self.console.expect(text, limit).map_err(|error| error.context(self.diagnosis()))
    }

    /// Presses keys at the console.
    pub(crate) fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        let typed = match &mut self.keyboard {
            Keyboard::Pipe(pipe) => pipe.write_all(keys).and_then(|()| pipe.flush()),
            Keyboard::Pty(file) => file.write_all(keys),
            Keyboard::None => bail!("this machine has no keyboard"),
        };
        typed.context("the VMM does not take input")
    }

    /// Asks by the client program; `verb` is one of `lucos --help`, with its arguments. Returns the JSON of the answer.
    pub(crate) fn lucos(&self, verb: &str) -> Result<serde_json::Value> {
        let output = self.try_lucos(verb)?;
        ensure!(output.code == 0, "`lucos {verb}` ended with {}: {}{}", output.code, output.out, output.err);
        serde_json::from_str(&output.out).with_context(|| format!("`lucos {verb}` printed {:?}", output.out))
    }

    /// The same, whatever the answer is.
    pub(crate) fn try_lucos(&self, verb: &str) -> Result<process::Output> {
        let mut lucos = Command::new(images::program("lucos")?);
        lucos.arg("--api-socket").arg(self.api_socket()).arg("--json").args(verb.split(' '));
        process::run(&mut lucos, crate::deadlines::COMMAND * self.patience)
    }

    /// The same for a file and more words.
    pub(crate) fn try_lucos_with(&self, verb: &str, file: &Path, more: &[&str]) -> Result<process::Output> {
        let mut lucos = Command::new(images::program("lucos")?);
        lucos.arg("--api-socket").arg(self.api_socket()).arg("--json").arg(verb).arg(file).args(more);
        process::run(&mut lucos, crate::deadlines::PATCH * self.patience)
    }

    /// Waits until the control API answers: by then, disks are locked and sockets are made.
    pub(crate) fn wait_api(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = self.try_lucos("info")?;
            if answer.code == 0 {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < crate::deadlines::REFUSAL,
                "the control API does not answer: {}{}",
                answer.err,
                self.messages.text()
            );
        }
    }

    /// Where the control API is.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.folder.path().join(builder::API_SOCKET)
    }

    /// A counter of a device.
    pub(crate) fn device_counter(&self, device: &str, name: &str) -> Result<u64> {
        let counters = self.lucos("counters")?;
        let found = counters["devices"][device][name].as_u64();
        found.with_context(|| format!("there is no counter {name} of {device} in {counters}"))
    }

    /// Sends the VMM a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context("cannot send a signal to the VMM")
    }

    /// Waits for the VMM's end; returns its exit code, as a shell would report it.
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> Result<i32> {
        match process::wait(&mut self.child, limit)? {
            Some(status) => {
                self.console.wait_end(Duration::from_millis(if self.pty.is_some() { 300 } else { 5000 }));
                self.messages.wait_end(Duration::from_secs(5));
                Ok(process::code(status))
            }
            None => bail!("lucos-vmm did not end within {} s", limit.as_secs()),
        }
    }

    /// Waits for the end, which must have this code, and after which no socket may be left.
    pub(crate) fn expect_exit(&mut self, code: i32, limit: Duration) -> Result<()> {
        let found = self.wait_exit(limit)?;
        ensure!(found == code, "lucos-vmm ended with {found}, not {code}: {}", self.messages.text());
        for socket in [self.api_socket(), self.agent_socket()] {
            ensure!(!socket.exists(), "{} is left behind", socket.display());
        }
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Nothing helps if it cannot be killed; if it has ended already, nothing needs to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
