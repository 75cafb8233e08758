//! A guest run by `lucos-vmm`, as a user would.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Program;

/// Guest RAM: the lowest address of a program's data and more.
const MEMORY: &str = "64M";
/// How long the VMM may take for any one thing.
const LIMIT: Duration = Duration::from_secs(150);

/// How to run a program.
#[derive(Debug, Default)]
pub(crate) struct Setup<'a> {
    pub(crate) cpus: u8,
    pub(crate) disks: &'a [&'a Path],
}

/// A running `lucos-vmm`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    directory: tempfile::TempDir,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) code: Option<i32>,
    pub(crate) errors: String,
    pub(crate) console: Vec<u8>,
}

impl Machine {
    pub(crate) fn start(program: &Program, setup: &Setup<'_>) -> Self {
        super::need_kvm();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("vmlinux"), &program.vmlinux).unwrap();
        let mut command = Command::new(vmm());
        command.arg("--kernel").arg(path("vmlinux")).args(["--memory", MEMORY]);
        command.args(["--cpus", &setup.cpus.max(1).to_string()]);
        command.arg("--api-socket").arg(path("api"));
        for disk in setup.disks {
            command.arg("--disk").arg(disk);
        }
        command.arg("--serial").arg(format!("file={}", path("console").display()));
        command.stdin(Stdio::null());
        command.stderr(File::create(path("errors")).unwrap());
        let mut machine = Self { child: command.spawn().unwrap(), directory };
        // The API answers before the guest runs, so silence until the end means a refusal; that shows later. The
        // socket's file alone says nothing: it is there a moment before its owner listens.
        let begin = Instant::now();
        while machine.ask("GET", "vm.info").is_none()
            && machine.child.try_wait().is_ok_and(|ended| ended.is_none())
            && begin.elapsed() < LIMIT
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn console(&self) -> Vec<u8> {
        fs::read(self.path("console")).unwrap_or_default()
    }

    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("errors")).unwrap_or_default()).into_owned()
    }

    /// One request to the API; `None` when nobody answers, as after the end.
    pub(crate) fn ask(&self, method: &str, verb: &str) -> Option<(u16, serde_json::Value)> {
        let mut stream = UnixStream::connect(self.path("api")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{method} /api/v1/{verb} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1;
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// A pause, which has to succeed.
    pub(crate) fn pause(&self) {
        let answer = self.ask("PUT", "vm.pause");
        assert!(matches!(answer, Some((200, _))), "{answer:?}; {}", self.errors());
    }

    pub(crate) fn resume(&self) {
        let answer = self.ask("PUT", "vm.resume");
        assert!(matches!(answer, Some((200, _))), "{answer:?}; {}", self.errors());
    }

    /// Waits until the guest runs for the first time.
    pub(crate) fn running(self) -> Self {
        // Between the making of the socket and its first answer a connection is refused.
        super::wait_until(LIMIT, "the machine to run", || {
            self.ask("GET", "vm.info").is_some_and(|(_, info)| info["state"] != "starting")
        });
        self
    }

    pub(crate) fn state(&self) -> String {
        let (_, info) = self.ask("GET", "vm.info").unwrap_or_else(|| panic!("gone: {}", self.errors()));
        info["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Exits of one kind so far.
    pub(crate) fn exits(&self, kind: &str) -> u64 {
        let (_, counters) = self.ask("GET", "vm.counters").unwrap_or_default();
        counters["exits"][kind].as_u64().unwrap_or(0)
    }

    /// Ends the VMM as an operator does.
    pub(crate) fn shut_down(self) -> Ending {
        let answer = self.ask("PUT", "vmm.shutdown");
        assert!(answer.is_some(), "no answer to shutdown: {}", self.errors());
        self.wait()
    }

    /// The same for a guest that may end by itself at any moment.
    pub(crate) fn shut_down_if_there(self) -> Ending {
        self.ask("PUT", "vmm.shutdown");
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ending {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ending { code: status.code(), errors: self.errors(), console: self.console() };
            }
            assert!(
                begin.elapsed() < LIMIT,
                "lucos-vmm still runs; state {:?}, errors: {}",
                self.ask("GET", "vm.info"),
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A word of guest memory below the MMIO hole, as the VMM's process has it mapped.
    pub(crate) fn guest_word(&self, address: u64) -> u64 {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let maps = fs::read_to_string(process.join("maps")).unwrap();
        let line = maps.lines().find(|line| line.contains("memfd:lucos-guest-ram")).unwrap();
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let mut word = [0; 8];
        File::open(process.join("mem")).unwrap().read_exact_at(&mut word, start + address).unwrap();
        u64::from_le_bytes(word)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program under test: beside the test programs' folder, wherever that was put.
fn vmm() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = own.parent().and_then(Path::parent).unwrap().join("lucos-vmm");
    if beside.exists() { beside } else { env!("CARGO_BIN_EXE_lucos-vmm").into() }
}
