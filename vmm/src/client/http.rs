//! One request to the VMM.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::verb::Method;

/// A living VMM accepts at once; it may be busy with other clients.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longer than the VMM gives its machine, so that the VMM's own message arrives.
const ANSWER_LIMIT: Duration = Duration::from_secs(160);
/// The longest answer that is read: the stacks of 100,000 tasks, at 2 KiB each. All symbols of a kernel take 15 MiB.
const ANSWER_MAX: usize = 256 << 20;

/// What the VMM said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Whether it did what was asked.
    pub(super) success: bool,
    /// The rest.
    pub(super) body: Value,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody is there.
    #[error("no VMM at {}: {source}; check the path, or start one with `lucos-vmm --api-socket {}`",
            socket.display(), socket.display())]
    NoVmm {
        /// The socket.
        socket: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The socket belongs to somebody else, or the like.
    #[error("cannot open {}: {source}; only the user who started the VMM may, so become that user",
            socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The VMM is there, and silent.
    #[error("the VMM at {} did not answer within {} s; look at its log, and at whether it is stopped or starved",
            socket.display(), limit.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// What listens there does not speak the control API, or broke off.
    #[error("{} does not answer as a VMM does: {reason}; check the path, and that client and VMM have one version",
            socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The host gave no means to ask.
    #[error("cannot set up the connection: {source}")]
    Setup {
        /// What the host said.
        source: io::Error,
    },
}

/// Asks, and waits for the answer.
pub(super) fn request(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Answer, RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| RequestError::Setup { source })?;
    runtime.block_on(async {
        let stream = connect(socket).await?;
        let silent = |_| RequestError::Silent { socket: socket.to_owned(), limit: ANSWER_LIMIT };
        timeout(ANSWER_LIMIT, exchange(stream, method, path, body)).await.map_err(silent)?.map_err(|error| {
            let mut reason = error.to_string();
            if let Some(source) = error.source() {
                reason = format!("{reason}: {source}");
            }
            RequestError::Garbled { socket: socket.to_owned(), reason }
        })
    })
}

async fn connect(socket: &Path) -> Result<UnixStream, RequestError> {
    let socket_path = socket.to_owned();
    match timeout(CONNECT_LIMIT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(stream),
        Err(_) => Err(RequestError::Silent { socket: socket_path, limit: CONNECT_LIMIT }),
        Ok(Err(source)) => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                Err(RequestError::NoVmm { socket: socket_path, source })
            }
            _ => Err(RequestError::Connect { socket: socket_path, source }),
        },
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let conversation = tokio::spawn(connection);
    let method = match method {
        Method::Get => hyper::Method::GET,
        Method::Put => hyper::Method::PUT,
    };
    // HTTP/1.1 wants a host; on a Unix socket it has no meaning.
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let success = response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await?.to_bytes();
    conversation.abort();
    Ok(Answer { success, body: serde_json::from_slice(&body)? })
}
