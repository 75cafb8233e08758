//! What belongs to the host and outlives a reset of the guest: consoles, signals, the control socket.

use std::fs::File;
use std::io;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::MachineError;
use super::controller::Controller;
use super::events::{Event, Events};
use crate::agent::AgentLink;
use crate::config::{MachineSpec, SerialSpec};
use crate::console::{AgentSocket, ConsoleCommands, ConsoleInput, OutputQueue, RawTerminal};
use crate::control::{ControlServer, MachineControl};
use crate::device::serial::{SerialSink, Uart};
use crate::update::StubExits;
use crate::vcpu::Tombstones;

/// The host's side of a machine.
pub(super) struct HostSide {
    console: Arc<Uart>,
    agent: Arc<Uart>,
    link: Arc<AgentLink>,
    tombstones: Arc<Tombstones>,
    stubs: Arc<StubExits>,
    output: Option<Arc<OutputQueue>>,
    // Dropped in this order: input first, so that nothing writes to a UART whose machine is gone; the
    // terminal last, when nothing prints any more.
    _input: Option<ConsoleInput>,
    _api: Option<ControlServer>,
    _agent_socket: AgentSocket,
    signals: signal_hook::iterator::Handle,
    _terminal: Option<RawTerminal>,
}

struct Discard;

impl SerialSink for Discard {
    fn send(&self, _bytes: &[u8]) {}
}

impl HostSide {
    pub(super) fn open(
        spec: &MachineSpec,
        events: &Events,
        controller: &Arc<Controller>,
        link: &Arc<AgentLink>,
        tombstones: Arc<Tombstones>,
    ) -> Result<Self, MachineError> {
        let signals = forward_signals(events).map_err(MachineError::host("handle signals"))?;
        let fail = |what: &'static str| MachineError::host(what);
        let output = match &spec.serial {
            SerialSpec::Null => None,
            SerialSpec::Tty => {
                Some(OutputQueue::start(io::stdout()).map_err(fail("start the console's output"))?)
            }
            SerialSpec::File(path) => {
                let file = File::create(path)
                    .map_err(MachineError::host(format!("write the console to {}", path.display())))?;
                Some(OutputQueue::start(file).map_err(fail("start the console's output"))?)
            }
        };
        let sink: Arc<dyn SerialSink> = match &output {
            Some(queue) => Arc::clone(queue) as Arc<dyn SerialSink>,
            None => Arc::new(Discard),
        };
        let mut agent_socket = AgentSocket::bind(spec.agent.as_deref())?;
        let uart = |sink| Uart::new(sink).map(Arc::new).map_err(fail("create a serial port"));
        let (console, agent) = (uart(sink)?, uart(agent_socket.sink())?);
        link.wake_through(Arc::clone(&agent));
        agent_socket.start(Arc::clone(&agent)).map_err(fail("serve the agent's socket"))?;
        let api = spec
            .api_socket
            .as_deref()
            .map(|path| ControlServer::start(path, Arc::clone(controller) as Arc<dyn MachineControl>))
            .transpose()?;
        let mut terminal = None;
        let mut input = None;
        if spec.serial == SerialSpec::Tty {
            terminal = RawTerminal::enter().map_err(fail("put the terminal into raw mode"))?;
            let commands = Arc::clone(controller) as Arc<dyn ConsoleCommands>;
            let started = ConsoleInput::start(Arc::clone(&console), terminal.is_some(), commands);
            input = Some(started.map_err(fail("read standard input"))?);
        }
        Ok(Self {
            console,
            agent,
            link: Arc::clone(link),
            tombstones,
            stubs: controller.stubs(),
            output,
            _input: input,
            _api: api,
            _agent_socket: agent_socket,
            signals,
            _terminal: terminal,
        })
    }

    pub(super) fn console(&self) -> &Arc<Uart> {
        &self.console
    }

    pub(super) fn agent(&self) -> &Arc<Uart> {
        &self.agent
    }

    pub(super) fn stubs(&self) -> &Arc<StubExits> {
        &self.stubs
    }

    pub(super) fn link(&self) -> &Arc<AgentLink> {
        &self.link
    }

    pub(super) fn tombstones(&self) -> &Arc<Tombstones> {
        &self.tombstones
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(output) = &self.output {
            output.close();
        }
    }
}

/// Turns the signals that ask a process to end into events, so that the terminal and the sockets are put in
/// order on these ways out too.
fn forward_signals(events: &Events) -> io::Result<signal_hook::iterator::Handle> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let handle = signals.handle();
    let sender = events.sender();
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(move || {
        signals.forever().for_each(|signal| sender.send(Event::Signal(signal)));
    })?;
    Ok(handle)
}
