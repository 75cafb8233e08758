//! The host: what it is asked, and what it answers.

use std::io::{self, Write};

use lucos_abi::{CALL_BYTES, Call, ErrorCode, Hello, Lockdown, Place, Report, Request, RequestKind, answer};
use zerocopy::{FromBytes, IntoBytes};

use crate::kernel::Kernel;
use crate::sys::{Buffer, Port};

/// How often a call is tried whose buffer is on the move. The kernel moves a page in microseconds, and then leaves it.
const TRIES: u32 = 1000;

/// Why the host was not reached, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The kernel does not let this process use the port.
    #[error("{why}: {source}")]
    Port {
        /// In a sentence.
        why: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// There is no buffer.
    #[error("cannot lock 64 KiB in memory: {0}")]
    Buffer(io::Error),
    /// The host has answered by an error.
    #[error("{call:?}: the host says: {}", code.sentence())]
    Refused {
        /// What it was asked.
        call: Call,
        /// What it said.
        code: ErrorCode,
    },
    /// The host asks for what this agent does not know.
    #[error("the host's request {id} is none of this version")]
    Request {
        /// Its id.
        id: u32,
    },
    /// What the host sent cannot be kept.
    #[error("cannot keep the module in memory: {0}")]
    Module(io::Error),
}

impl HostError {
    /// Whether there is no host that answers hypercalls.
    pub(crate) fn is_absence(&self) -> bool {
        self.code() == Some(ErrorCode::Absent)
    }

    /// What the host has answered.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The way to it.
pub(crate) struct Host {
    port: Port,
    buffer: Buffer,
}

impl Host {
    /// Gets the right to call it.
    pub(crate) fn open(kernel: &Kernel) -> Result<Self, HostError> {
        let why = |source: io::Error| match kernel.lockdown() {
            Lockdown::Integrity | Lockdown::Confidentiality => HostError::Port {
                why: "this kernel is locked down: it lets no program use I/O ports, and so none reach the host",
                source,
            },
            Lockdown::None | Lockdown::Unknown => HostError::Port {
                why: "the kernel does not let this process use I/O ports; it has to be root",
                source,
            },
        };
        Ok(Self { port: Port::open().map_err(why)?, buffer: Buffer::new().map_err(HostError::Buffer)? })
    }

    /// Tells it that this is the agent.
    pub(crate) fn hello(&mut self, hello: &Hello) -> Result<(), HostError> {
        self.fill(hello.as_bytes());
        self.call(Call::Hello, size_of::<Hello>(), 0).map(drop)
    }

    /// Asks for something to do.
    pub(crate) fn next(&mut self) -> Result<Option<Request>, HostError> {
        if self.call(Call::Next, size_of::<Request>(), 0)? == 0 {
            return Ok(None);
        }
        let (request, _) =
            Request::read_from_prefix(self.buffer.bytes()).map_err(|_| HostError::Request { id: 0 })?;
        if request.kind().is_none() || request.name().is_none() {
            return Err(HostError::Request { id: request.id.get() });
        }
        Ok(Some(request))
    }

    /// Copies the module of a request to `out`.
    pub(crate) fn module(&mut self, request: &Request, out: &mut impl Write) -> Result<(), HostError> {
        let mut offset = 0;
        while request.kind() == Some(RequestKind::Load) && offset < request.bytes.get() {
            let place = Place { number: request.id.get(), offset };
            let count = self.call(Call::Read, CALL_BYTES, place.register())?;
            let part = self.buffer.bytes().get(..count as usize).filter(|part| !part.is_empty());
            let part = part.ok_or(HostError::Request { id: request.id.get() })?;
            out.write_all(part).map_err(HostError::Module)?;
            offset += u64::from(count);
        }
        Ok(())
    }

    /// Answers a request: with the error number of what has failed, or where the module's sections are.
    pub(crate) fn report(
        &mut self,
        id: u32,
        taint: u64,
        outcome: Result<&str, u32>,
    ) -> Result<(), HostError> {
        let (errno, text) = match outcome {
            Ok(text) => (0, text),
            Err(errno) => (errno, ""),
        };
        let report = Report {
            id: id.into(),
            errno: errno.into(),
            taint: taint.into(),
            text_bytes: u32::try_from(text.len()).unwrap_or(u32::MAX).into(),
            reserved: 0.into(),
        };
        let bytes = [report.as_bytes(), text.as_bytes()].concat();
        self.fill(&bytes);
        self.call(Call::Report, bytes.len(), 0).map(drop)
    }

    /// Hands in the bytes of a patch that begin at `place`.
    pub(crate) fn write(&mut self, place: Place, bytes: &[u8]) -> Result<(), HostError> {
        self.fill(bytes);
        self.call(Call::Write, bytes.len(), place.register()).map(drop)
    }

    /// Hands the patch over that ends at `place`; returns its number.
    pub(crate) fn submit(&mut self, place: Place, name: &str) -> Result<u32, HostError> {
        self.fill(name.as_bytes());
        self.call(Call::Submit, name.len(), place.register())
    }

    /// What the host says of its patches.
    pub(crate) fn status(&mut self) -> Result<String, HostError> {
        let count = self.call(Call::Status, CALL_BYTES, 0)? as usize;
        let text = self.buffer.bytes().get(..count).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Puts bytes, at most as many as it has, at the buffer's start.
    fn fill(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(CALL_BYTES);
        self.buffer.bytes_mut()[..len].copy_from_slice(&bytes[..len]);
    }

    fn call(&mut self, call: Call, len: usize, rest: u64) -> Result<u32, HostError> {
        let mut code = ErrorCode::Again;
        for _ in 0..TRIES {
            match answer(self.port.call(call, &mut self.buffer, len, rest)) {
                Ok(count) => return Ok(count),
                Err(moved @ (ErrorCode::Again | ErrorCode::ReadOnly)) => {
                    code = moved;
                    self.buffer.touch();
                    std::thread::yield_now();
                }
                Err(code) => return Err(HostError::Refused { call, code }),
            }
        }
        Err(HostError::Refused { call, code })
    }
}
