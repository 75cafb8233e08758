//! The host end of the guest agent's serial port: a Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use super::wake::StopSignal;
use crate::device::serial::{SerialSink, Uart};
use crate::socket::{SocketError, SocketFile};

/// Stack of the socket's thread.
const STACK: usize = 64 << 10;
/// Why the socket could not be offered.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host has no descriptors left.
    #[error("cannot watch the agent's socket: {0}")]
    Watch(#[from] io::Error),
}

#[derive(Default)]
struct Peer {
    stream: Mutex<Option<UnixStream>>,
    dropped: AtomicU64,
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialSink for Peer {
    fn send(&self, bytes: &[u8]) {
        // Without a peer, or with one that does not read, bytes are lost, as on a wire.
        let sent = self.lock().as_mut().map_or(0, |stream| stream.write(bytes).unwrap_or(0));
        self.dropped.fetch_add((bytes.len() - sent) as u64, Ordering::Relaxed);
    }
}

/// A socket that one peer at a time may connect to.
pub struct AgentSocket {
    peer: Arc<Peer>,
    listener: Option<UnixListener>,
    file: Option<SocketFile>,
    stop: StopSignal,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for AgentSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSocket").field("file", &self.file).finish_non_exhaustive()
    }
}

impl AgentSocket {
    /// Binds `path`; without one, nobody ever connects.
    pub fn bind(path: Option<&Path>) -> Result<Self, AgentError> {
        let (file, listener) = path.map(|path| SocketFile::bind("--agent", path)).transpose()?.unzip();
        Ok(Self { peer: Arc::default(), listener, file, stop: StopSignal::new()?, thread: None })
    }

    /// Where the guest's bytes go.
    pub fn sink(&self) -> Arc<dyn SerialSink> {
        Arc::clone(&self.peer) as Arc<dyn SerialSink>
    }

    /// Starts to serve peers from `uart`.
    pub fn start(&mut self, uart: Arc<Uart>) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let (peer, stop) = (Arc::clone(&self.peer), self.stop.clone());
        let thread = std::thread::Builder::new().name("agent".into()).stack_size(STACK).spawn(move || {
            if let Err(error) = serve(&listener, &peer, &uart, &stop) {
                tracing::warn!("the agent's socket ends: {error}");
            }
        })?;
        self.thread = Some(thread);
        Ok(())
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the agent's socket thread panicked; this is a bug");
        }
    }
}

fn serve(listener: &UnixListener, peer: &Peer, uart: &Uart, stop: &StopSignal) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut reader: Option<UnixStream> = None;
    while !stop.stopped() {
        let mut ready = vec![PollFd::new(stop, PollFlags::IN)];
        match &reader {
            Some(stream) => ready.push(PollFd::new(stream, PollFlags::IN)),
            None => ready.push(PollFd::new(listener, PollFlags::IN)),
        }
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let Some(stream) = &mut reader else {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                *peer.lock() = Some(stream.try_clone()?);
                reader = Some(stream);
            }
            continue;
        };
        match stream.read(&mut buffer) {
            Ok(0) => (reader, *peer.lock()) = (None, None),
            Ok(count) => uart.receive(&buffer[..count], || !stop.stopped()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!("agent peer: {error}");
                (reader, *peer.lock()) = (None, None);
            }
        }
    }
    Ok(())
}
