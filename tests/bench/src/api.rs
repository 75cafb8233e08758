//! Stopping and continuing a guest from outside: lucos-vmm's control API, and QEMU's QMP.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(1);

/// Something that can stop and continue its guest.
pub(crate) trait Stop {
    /// Stops every vCPU.
    fn stop(&mut self) -> Result<Stopped>;
    /// Lets them go on.
    fn go_on(&mut self) -> Result<()>;
}

/// How a stop went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped {
    /// What the VMM itself says that it took.
    pub(crate) took: Option<Duration>,
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("cannot connect to {}", socket.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// lucos-vmm's control API: one connection for each request.
#[derive(Debug)]
pub(crate) struct Lucos(PathBuf);

impl Lucos {
    pub(crate) fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// What the VMM answers to a question.
    pub(crate) fn get(&self, verb: &str) -> Result<Value> {
        self.ask("GET", verb, &[])
    }

    /// What it answers to a request with a body.
    pub(crate) fn put(&self, verb: &str, body: &[u8]) -> Result<Value> {
        self.ask("PUT", verb, body)
    }

    fn ask(&self, method: &str, verb: &str, sent: &[u8]) -> Result<Value> {
        let mut stream = connect(&self.0)?;
        let len = sent.len();
        write!(
            stream,
            "{method} /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
        )?;
        stream.write_all(sent)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("no answer to {verb}"))?;
        body(&answer).with_context(|| format!("in answer to {verb}"))
    }
}

/// The JSON of a response that went well.
fn body(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("this is no HTTP")?;
    if !head.starts_with("HTTP/1.1 2") {
        bail!("{body}");
    }
    Ok(serde_json::from_str(body)?)
}

impl Stop for Lucos {
    fn stop(&mut self) -> Result<Stopped> {
        let report = self.ask("PUT", "vm.pause", &[])?;
        let took = report["took_us"].as_u64().context("the report has no took_us")?;
        Ok(Stopped { took: Some(Duration::from_micros(took)) })
    }

    fn go_on(&mut self) -> Result<()> {
        self.ask("PUT", "vm.resume", &[]).map(drop)
    }
}

/// QEMU's machine protocol: one connection for all.
#[derive(Debug)]
pub(crate) struct Qmp {
    answers: BufReader<UnixStream>,
    requests: UnixStream,
}

impl Qmp {
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let requests = connect(socket)?;
        let mut qmp = Self { answers: BufReader::new(requests.try_clone()?), requests };
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    fn execute(&mut self, command: &str) -> Result<()> {
        writeln!(self.requests, r#"{{"execute":"{command}"}}"#)?;
        // Greetings and events come between a command and its answer.
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                bail!("QEMU ended in answer to {command}");
            }
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }
}

impl Stop for Qmp {
    fn stop(&mut self) -> Result<Stopped> {
        self.execute("stop")?;
        Ok(Stopped { took: None })
    }

    fn go_on(&mut self) -> Result<()> {
        self.execute("cont")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_has_a_body() {
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"took_us\":5}";
        assert_eq!(body(good).unwrap()["took_us"], 5);
        let error = body("HTTP/1.1 409 Conflict\r\n\r\nnot running").unwrap_err();
        assert!(error.to_string().contains("not running"));
        assert!(body("").is_err());
    }
}
