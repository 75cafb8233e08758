//! A machine that follows a script, and a plain conversation with a socket, free of any HTTP library.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lucos_vmm::config::MachineSpec;
use lucos_vmm::control::model::{
    Counters, Difference, Effort, FrameInfo, HolderInfo, LostPage, MachineState, ModuleInfo, ModuleReport,
    PatchInfo, PatchList, PatchState, PauseReport, ResumeReport, SiteInfo, SiteTable, StackInfo, StackReport,
    SymbolInfo, SymbolReport, TaskInfo, TaskReport, TextRange, TextReport, TextShare, TrapReport,
};
use lucos_vmm::control::{Arming, ControlError, MachineControl};
use lucos_vmm::update::{Board, Deadline};
use update_server::addr::Gpa;
use update_server::watch::NotWatched;

/// A machine that only keeps a state.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) state: Mutex<MachineState>,
    pub(crate) spec: MachineSpec,
    pub(crate) board: Board,
    /// While true, `pause` does not come back.
    pub(crate) hang: Mutex<bool>,
    pub(crate) unhang: Condvar,
    pub(crate) pauses: AtomicU64,
    pub(crate) buttons: AtomicU64,
    pub(crate) shut_down: AtomicBool,
}

impl Scripted {
    pub(crate) fn running() -> Arc<Self> {
        let mut spec = MachineSpec::new("bzImage");
        spec.disks.push("root.img,readonly=on".parse().unwrap());
        Arc::new(Self {
            state: Mutex::new(MachineState::Running),
            spec,
            board: Board::default(),
            hang: Mutex::new(false),
            unhang: Condvar::new(),
            pauses: AtomicU64::new(0),
            buttons: AtomicU64::new(0),
            shut_down: AtomicBool::new(false),
        })
    }

    fn needs(&self, operation: &'static str, needed: MachineState) -> Result<(), ControlError> {
        let found = *self.state.lock().unwrap();
        if found == needed { Ok(()) } else { Err(ControlError::WrongState { operation, found, needed }) }
    }

    pub(crate) fn set_hang(&self, hang: bool) {
        *self.hang.lock().unwrap() = hang;
        self.unhang.notify_all();
    }
}

impl MachineControl for Scripted {
    fn state(&self) -> MachineState {
        *self.state.lock().unwrap()
    }

    fn config(&self) -> MachineSpec {
        self.spec.clone()
    }

    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        counters.exits.insert("io".into(), 1234);
        counters.pauses.record(Duration::from_micros(150));
        counters.devices.entry("nvme0".into()).or_default().insert("reads".into(), 7);
        counters
    }

    fn pause(&self) -> Result<PauseReport, ControlError> {
        let mut hang = self.hang.lock().unwrap();
        while *hang {
            hang = self.unhang.wait(hang).unwrap();
        }
        drop(hang);
        self.needs("vm.pause", MachineState::Running)?;
        *self.state.lock().unwrap() = MachineState::Paused;
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Ok(PauseReport { took_us: 42, vcpus: 1 })
    }

    fn resume(&self) -> Result<ResumeReport, ControlError> {
        self.needs("vm.resume", MachineState::Paused)?;
        *self.state.lock().unwrap() = MachineState::Running;
        Ok(ResumeReport { paused_us: 1000 })
    }

    fn power_button(&self) -> Result<(), ControlError> {
        self.needs("vm.power-button", MachineState::Running)?;
        self.buttons.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn stacks(&self, _verify: bool) -> Result<StackReport, ControlError> {
        let task = TaskInfo {
            pid: 17,
            tgid: 16,
            comm: "sleepy".into(),
            state: "D".into(),
            kernel_thread: false,
            vcpu: None,
            idle_of: None,
            has_run: true,
            switches: 3,
            started_ns: 1000,
        };
        let frame =
            FrameInfo { address: "0x10".into(), name: "schedule+0x10/0x20".into(), behind_call: true };
        let doubt = Some("the stack ends".into());
        let stacks = vec![StackInfo { task, frames: vec![frame], complete: false, doubt }];
        Ok(StackReport {
            kernel: "6.1.0".into(),
            generation: 2,
            stacks,
            doubts: Vec::new(),
            effort: Effort::default(),
            paused_us: 1500,
        })
    }

    fn tasks(&self) -> Result<TaskReport, ControlError> {
        Err(ControlError::UnknownKernel { why: "no kernel yet".into() })
    }

    fn arm(&self, arming: &Arming) -> Result<TrapReport, ControlError> {
        self.needs("vm.arm", MachineState::Running)?;
        if let Some(&page) = arming.pages.iter().find(|page| page.0 % 4096 != 0) {
            return Err(NotWatched::NotFirst(page).into());
        }
        let mut pages: Vec<String> = arming.pages.iter().map(ToString::to_string).collect();
        pages.extend((0..arming.busiest).map(|page| format!("{:#x}", page << 12)));
        Ok(TrapReport { pages, ..self.traps()? })
    }

    fn traps(&self) -> Result<TrapReport, ControlError> {
        let lost = vec![LostPage { page: "0x5000".into(), why: "it is a table".into() }];
        let counts = [("accesses".to_owned(), 12)].into();
        Ok(TrapReport { way: "second-view".into(), pages: Vec::new(), counts, lost })
    }

    fn disarm(&self, pages: Option<&[Gpa]>) -> Result<TrapReport, ControlError> {
        let pages = pages.unwrap_or_default().iter().map(ToString::to_string).collect();
        Ok(TrapReport { pages, ..self.traps()? })
    }

    fn symbols(&self, filter: Option<&str>) -> Result<SymbolReport, ControlError> {
        let name = filter.unwrap_or("all").to_owned();
        let symbol = SymbolInfo { address: "0x10".into(), kind: "T".into(), name, module: None };
        Ok(SymbolReport { kernel: "6.1.0".into(), symbols: vec![symbol], ..SymbolReport::default() })
    }

    fn modules(&self, name: Option<&str>) -> Result<ModuleReport, ControlError> {
        let site = SiteInfo { address: "0x30".into(), bytes: 5, table: "__mcount_loc".into() };
        let module = ModuleInfo {
            name: name.unwrap_or("nvme").into(),
            state: "live".into(),
            text: TextRange { address: "0xffffffffc0000000".into(), bytes: 8192 },
            symbols: 3,
            orc: 40,
            tables: [("__mcount_loc".to_owned(), SiteTable { entries: 3, sites: 2 })].into(),
            gone: 1,
            unread: [(".smp_locks".to_owned(), "nothing is there".to_owned())].into(),
            sites: name.map(|_| vec![site]),
            ..ModuleInfo::default()
        };
        Ok(ModuleReport { kernel: "6.1.0".into(), modules: vec![module], ..ModuleReport::default() })
    }

    fn text_check(&self) -> Result<TextReport, ControlError> {
        let explained = [("__mcount_loc".to_owned(), TextShare { sites: 2, bytes: 10 })].into();
        let place = Difference {
            address: "0x10".into(),
            name: "schedule+0x10/0x20".into(),
            found: "cc".into(),
            expected: "90".into(),
        };
        Ok(TextReport {
            kernel: "6.1.0".into(),
            bytes: 4096,
            explained,
            unexplained: vec![place],
            ..TextReport::default()
        })
    }

    fn apply(&self, file: &[u8], unsigned: bool, _limit: Deadline) -> Result<PatchInfo, ControlError> {
        if !unsigned {
            let why = "nobody vouches for it".to_owned();
            return Err(ControlError::PatchRefused { code: "not_trusted", why });
        }
        Ok(patch(1, String::from_utf8_lossy(file).into_owned(), PatchState::Loading))
    }

    fn roll_back(&self, id: u32, _limit: Deadline) -> Result<PatchInfo, ControlError> {
        if id == 1 {
            Ok(patch(1, "one".into(), PatchState::RollingBack))
        } else {
            Err(ControlError::NoPatch { id })
        }
    }

    fn patches(&self) -> PatchList {
        let mut drained = patch(1, "one".into(), PatchState::Draining);
        drained.holders.push(HolderInfo {
            pid: 17,
            comm: "sleepy".into(),
            function: "do_sys_poll".into(),
            for_ms: 5000,
            stack: ["schedule+0x10/0x20".to_owned()].into(),
            more_frames: 440,
        });
        drained.more_holders = 29_999;
        drained.doubts.push("the stack ends".into());
        drained.more_doubts = 8;
        drained.redirected = 1;
        PatchList { revision: 3, agent: None, taint: Some(4096), patches: vec![drained] }
    }

    fn board(&self) -> &Board {
        &self.board
    }

    fn shutdown(&self) {
        self.shut_down.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn patch(id: u32, name: String, state: PatchState) -> PatchInfo {
    PatchInfo {
        id,
        name,
        summary: "mends what was broken".into(),
        fixes: vec!["CVE-2026-1".into()],
        functions: vec!["do_sys_poll".into()],
        consistency: "coexist".into(),
        signed_by: None,
        from: "operator".into(),
        state,
        for_ms: 12_000,
        why: None,
        attempts: 1,
        paused_us: 1500,
        tombstones: 0,
        holders: Vec::new(),
        more_holders: 0,
        redirected: 0,
        told: 0,
        looks: 0,
        doubts: Vec::new(),
        more_doubts: 0,
    }
}

/// Sends bytes, returns everything that comes back until the other side hangs up.
pub(crate) fn converse(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    // The server may hang up before all is sent; what it said is there to read all the same.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// One request; the status and the JSON of the answer.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> (u16, serde_json::Value) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n").into_bytes();
    if !body.is_empty() {
        request.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    let answer = converse(socket, &request);
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap();
    let (head, json) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    (status, serde_json::from_str(json).unwrap_or_else(|_| panic!("no JSON: {json:?}")))
}
