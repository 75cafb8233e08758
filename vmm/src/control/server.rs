//! The thread that serves the control API.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::machine::MachineControl;
use super::routes::{Api, router};
use crate::socket::{SocketError, SocketFile};

/// Connections served at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send the head of its request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may last, whatever its client does. Longer than the machine may take to answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(150);
/// How long the answers under way may take when the VMM ends.
const FAREWELL_LIMIT: Duration = Duration::from_millis(500);
/// hyper's smallest read buffer; a request's head has to fit.
const HEAD_MAX: usize = 8192;
/// Threads that wait for the machine: one acts, the others answer those who only look.
const MACHINE_THREADS: usize = 3;
/// Untouched stack costs nothing but address space, touched stack counts against the VMM's 5 MiB.
const STACK: usize = 512 << 10;

/// Why the control API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread that would serve it cannot be made.
    #[error("cannot start the thread of the control API: {source}")]
    Thread {
        /// What the host said.
        source: io::Error,
    },
}

/// The control API of one machine; it ends, and its socket is removed, when this is dropped.
///
/// Start it before the guest runs and drop it after the guest's end, so that a client sees every state.
#[derive(Debug)]
pub struct ControlServer {
    file: Option<SocketFile>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Makes the socket at `path` and serves `machine` on it, from one thread of its own.
    pub fn start(path: &Path, machine: Arc<dyn MachineControl>) -> Result<Self, ServerError> {
        let (file, listener) = SocketFile::bind("--api-socket", path)?;
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(MACHINE_THREADS)
            .thread_keep_alive(Duration::from_secs(1))
            .thread_name("control-wait")
            .thread_stack_size(STACK)
            .build()
            .map_err(|source| ServerError::Thread { source })?;
        let listener = {
            let _runtime = runtime.enter();
            UnixListener::from_std(listener).map_err(|source| ServerError::Thread { source })?
        };
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .stack_size(STACK)
            .spawn(move || serve(runtime, &listener, &router(Api::new(machine)), &stopped))
            .map_err(|source| ServerError::Thread { source })?;
        tracing::info!(path = %path.display(), "control API listens");
        Ok(Self { file: Some(file), stop, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // First the file, so that whoever comes now finds no VMM instead of one that does not answer.
        drop(self.file.take());
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the control API had panicked");
        }
    }
}

fn serve(runtime: Runtime, listener: &UnixListener, router: &Router, stopped: &watch::Receiver<bool>) {
    runtime.block_on(accept(listener, router, stopped));
    // A call into the machine that hangs must not keep the VMM from ending.
    runtime.shutdown_background();
}

async fn accept(listener: &UnixListener, router: &Router, stopped: &watch::Receiver<bool>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        let next = async {
            let permit = Arc::clone(&free).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = asked_to_stop(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let served = timeout(CONNECTION_LIMIT, converse(stream, router.clone(), stopped.clone()));
                connections.spawn(async move {
                    let _permit = permit;
                    if served.await.is_err() {
                        tracing::debug!("a control connection lasted too long");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: clients that leave give some back.
                tracing::warn!(%error, "cannot accept a control connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(FAREWELL_LIMIT, finish).await.is_err() {
        tracing::debug!("left control connections behind");
    }
}

async fn asked_to_stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Serves one connection: one request, so that no client can hold a place by coming back.
async fn converse(stream: UnixStream, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = asked_to_stop(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a control connection broke off");
    }
}
