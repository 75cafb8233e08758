//! A machine in this very process: the library as its embedder uses it, for what the programs do not offer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lucos_vmm::agent::{AgentEvents, AgentLink, Answer, Order, Outcome};
use lucos_vmm::config::{MachineSpec, SerialSpec};
use lucos_vmm::machine::{self, GuestExit};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::deadlines::{COMMAND, EXIT};
use crate::harness;
use crate::images;
use crate::process;
use crate::transcript::Transcript;

/// Wakes whoever waits for something of the agent.
#[derive(Debug, Default)]
struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl AgentEvents for Changes {
    fn changed(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

/// It, and the link to its guest's agent.
#[derive(Debug)]
pub(crate) struct Embedded {
    link: Arc<AgentLink>,
    changes: Arc<Changes>,
    console: Arc<Transcript>,
    api_socket: PathBuf,
    end: Receiver<Result<GuestExit, machine::MachineError>>,
    ended: bool,
    _folder: tempfile::TempDir,
}

impl Embedded {
    /// Starts a machine with its console and its sockets in `folder`.
    pub(crate) fn start(mut spec: MachineSpec, folder: tempfile::TempDir) -> Result<Self> {
        let (console, api_socket) = (folder.path().join("console"), folder.path().join("api.sock"));
        mknodat(CWD, &console, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // For both ends, so that neither waits for the other.
        let reader = File::options().read(true).write(true).open(&console)?;
        let transcript = Transcript::of("the guest's console", reader);
        harness::watch(&transcript, &Transcript::of("the embedded VMM", std::io::empty()));
        spec.serial = SerialSpec::File(console);
        spec.api_socket = Some(api_socket.clone());
        let changes = Arc::new(Changes::default());
        let link = Arc::new(AgentLink::new(Arc::clone(&changes) as _));
        let (sender, end) = channel();
        let of_machine = Arc::clone(&link);
        // Nobody may be left to hear of the end.
        thread::spawn(move || drop(sender.send(machine::run_with(&spec, &of_machine))));
        Ok(Self { link, changes, console: transcript, api_socket, end, ended: false, _folder: folder })
    }

    /// The link to the agent.
    pub(crate) fn link(&self) -> &AgentLink {
        &self.link
    }

    /// What the guest says.
    pub(crate) fn console(&self) -> &Transcript {
        &self.console
    }

    /// Waits until the link has what is looked for.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        look: impl Fn(&AgentLink) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut count = self.changes.count.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&self.link) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what}: not within {} s", limit.as_secs());
            (count, _) =
                self.changes.changed.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks the agent for something, and waits for the answer.
    pub(crate) fn ask(&self, order: Order) -> Result<Outcome> {
        let what = format!("{order:.40?}");
        let id = self.link.ask(order)?;
        let answers = self
            .wait(&what, COMMAND, |link| Some(link.take_answers()).filter(|answers| !answers.is_empty()))?;
        match &answers[..] {
            [Answer { id: answered, outcome }] if *answered == id => Ok(outcome.clone()),
            other => bail!("{what} is number {id}, and the answers are {other:?}"),
        }
    }

    /// Asks by the client program; returns the JSON of the answer.
    pub(crate) fn lucos(&self, verb: &str) -> Result<serde_json::Value> {
        let output = lucos(&self.api_socket, verb)?;
        ensure!(output.code == 0, "`lucos {verb}` ended with {}: {}", output.code, output.err);
        serde_json::from_str(&output.out).with_context(|| format!("`lucos {verb}` printed {:?}", output.out))
    }

    /// Waits until the guest has switched itself off.
    pub(crate) fn expect_power_off(&mut self, limit: Duration) -> Result<()> {
        let end = self.end.recv_timeout(limit).context("the machine does not end")?;
        self.ended = true;
        let end = end?;
        ensure!(end == GuestExit::PowerOff, "{end}");
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // A test that has failed leaves its guest running.
        if !self.ended && lucos(&self.api_socket, "shutdown").is_ok_and(|output| output.code == 0) {
            let _ = self.end.recv_timeout(EXIT);
        }
    }
}

fn lucos(socket: &Path, verb: &str) -> Result<process::Output> {
    let mut lucos = Command::new(images::program("lucos")?);
    lucos.arg("--api-socket").arg(socket).arg("--json").args(verb.split(' '));
    process::run(&mut lucos, COMMAND)
}
