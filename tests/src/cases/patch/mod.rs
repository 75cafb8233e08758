//! Live patches of stock kernels: applied, seen to work, rolled back.

mod basic;
mod gone;
mod hostile;
mod inside;
mod module;
mod policy;
mod refusals;
mod removal;
mod restless;
mod settings;
mod told;
mod tombstones;
mod torture;
mod traced;

use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadlines::{BOOT, COMMAND, PATCH};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::lup::Lup;
use crate::process::{self, Output};
use crate::vm::{Builder, Vm};

pub(super) const TESTS: &[Test] = &[
    Test::new("patch::applied_and_rolled_back_6_1_cloud", Tier::Gate, || basic::applied("6.1-cloud")),
    Test::new("patch::applied_and_rolled_back_6_12_cloud", Tier::Full, || basic::applied("6.12-cloud")),
    Test::new("patch::applied_and_rolled_back_6_1_rt", Tier::Full, || basic::applied("6.1-rt")),
    Test::new("patch::applied_and_rolled_back_on_intel", Tier::IntelFull, || {
        basic::applied_to(&mut Bench::start_on_a_slow_host("6.1-cloud")?)
    }),
    Test::new("patch::module_6_1_cloud", Tier::Gate, || module::patched("6.1-cloud")),
    Test::new("patch::module_6_12_cloud", Tier::Full, || module::patched("6.12-cloud")),
    Test::new("patch::bad_ones_are_refused", Tier::Gate, || refusals::refusals("6.1-cloud")),
    Test::new("patch::waits_until_nobody_is_inside", Tier::Gate, || policy::quiescent("6.1-cloud")),
    Test::new("patch::waits_for_sleepers", Tier::Full, || inside::quiescent("6.1-cloud")),
    Test::new("patch::settings_of_the_guest", Tier::Full, || settings::recognised("6.1-cloud")),
    Test::new("patch::handed_in_from_inside", Tier::Full, || settings::from_inside("6.1-cloud")),
    Test::new("patch::traced_6_1_cloud", Tier::Gate, || traced::traced("6.1-cloud")),
    Test::new("patch::traced_6_12_cloud", Tier::Full, || traced::traced("6.12-cloud")),
    Test::new("patch::a_probe_on_the_jump", Tier::Gate, || traced::probe_on_the_jump("6.1-cloud")),
    Test::new("patch::livepatched_by_the_guest", Tier::Full, || traced::livepatched("6.1-cloud")),
    Test::new("patch::while_the_guest_changes_itself", Tier::Full, || restless::restless("6.1-cloud")),
    Test::new("patch::a_guest_that_lies_6_1_cloud", Tier::Gate, || hostile::lies("6.1-cloud")),
    Test::new("patch::a_guest_that_lies_6_12_cloud", Tier::Full, || hostile::lies("6.12-cloud")),
    Test::new("patch::tombstones_6_1_cloud", Tier::Gate, || tombstones::filled("6.1-cloud")),
    Test::new("patch::tombstones_6_12_cloud", Tier::Full, || tombstones::filled("6.12-cloud")),
    Test::new("patch::met_tombstones_6_1_cloud", Tier::Gate, || tombstones::stale("6.1-cloud")),
    Test::new("patch::met_tombstones_6_12_cloud", Tier::Full, || tombstones::stale("6.12-cloud")),
    Test::new("patch::gone_after_a_reboot", Tier::Full, || gone::reboot("6.1-cloud")),
    Test::new("patch::gone_wherever_it_is", Tier::Full, || gone::wherever_it_is("6.1-cloud")),
    Test::new("patch::gone_after_a_kexec", Tier::Gate, || gone::kexec("6.1-cloud")),
    Test::with_alarms("patch::gone_after_a_kdump", Tier::Full, || gone::kdump("6.1-cloud")),
    Test::new("patch::agent_killed_at_any_point", Tier::Full, || gone::agent_killed("6.1-cloud")),
    Test::new("patch::removed_6_1_cloud", Tier::Gate, || removal::removed("6.1-cloud")),
    Test::new("patch::removed_6_12_cloud", Tier::Full, || removal::removed("6.12-cloud")),
    Test::new("patch::removed_when_nobody_holds_it", Tier::Gate, || removal::held("6.1-cloud")),
    Test::new("patch::a_module_that_comes_late", Tier::Gate, || removal::late("6.1-cloud")),
    Test::new("patch::stays_if_it_keeps_an_address", Tier::Gate, || removal::kept("6.1-cloud")),
    Test::new("patch::agent_killed_while_it_is_removed", Tier::Full, || removal::agent_killed("6.1-cloud")),
    Test::new("patch::always_inside_6_1_cloud", Tier::Gate, || inside::always_inside("6.1-cloud")),
    Test::new("patch::always_inside_6_12_cloud", Tier::Full, || inside::always_inside("6.12-cloud")),
    Test::new("patch::always_inside_6_1_rt", Tier::Full, || {
        realtime("patch::always_inside_6_1_rt", inside::always_inside)
    }),
    Test::new("patch::who_leaves_tells_6_1_cloud", Tier::Gate, || told::told("6.1-cloud")),
    Test::new("patch::who_leaves_tells_6_12_cloud", Tier::Full, || told::told("6.12-cloud")),
    Test::new("patch::torture_6_1_cloud", Tier::Gate, || torture::tortured("6.1-cloud", 20)),
    Test::new("patch::torture_6_12_cloud", Tier::Full, || torture::tortured("6.12-cloud", 20)),
    Test::new("patch::torture_6_1_rt", Tier::Full, || {
        realtime("patch::torture_6_1_rt", |kind| torture::tortured(kind, 20))
    }),
    Test::new("patch::torture_for_long_6_1_cloud", Tier::Full, || torture::tortured("6.1-cloud", 200)),
];

/// A realtime kernel that patches are compiled for: one of a point release of Debian's, whose source is there in whole.
const REALTIME: &str = "6.1-rt-release";
/// Handed over in its place when Debian's archive has it no more.
const NO_REALTIME: &str = "no-realtime-kernel";

fn realtime(test: &str, run: impl FnOnce(&'static str) -> Result<()>) -> Result<()> {
    if images::image(NO_REALTIME).is_ok() {
        println!("SKIPPED: {test}: Debian's archive has no realtime kernel with its source any more");
        return Ok(());
    }
    run(REALTIME)
}

/// A guest with an agent, and patches for it.
struct Bench {
    vm: Vm,
    kind: &'static str,
    folder: tempfile::TempDir,
}

/// The agent, so that nobody but the test looks at what it says.
const AGENT: &str = "lucos-agent run > /agent.log 2>&1 & echo $! > /agent.pid";

impl Bench {
    fn start(kind: &'static str, cpus: u32) -> Result<Self> {
        let folder = images::folder()?;
        let builder = Self::builder(kind, &folder)?.cpus(cpus);
        Self::of(kind, folder, builder)
    }

    /// The same on a host that interprets each instruction.
    fn start_on_a_slow_host(kind: &'static str) -> Result<Self> {
        let folder = images::folder()?;
        let builder = Self::builder(kind, &folder)?.on_a_slow_host();
        Self::of(kind, folder, builder)
    }

    fn builder(kind: &str, folder: &tempfile::TempDir) -> Result<Builder> {
        let initramfs = Initramfs::planted(folder.path().join("initramfs"), kind)?
            .archive(&images::image("agent.cpio")?)?;
        Ok(Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()))
    }

    fn of(kind: &'static str, folder: tempfile::TempDir, builder: Builder) -> Result<Self> {
        let mut bench = Self { vm: builder.verbose().start()?, kind, folder };
        bench.begin()?;
        Ok(bench)
    }

    /// Waits for the guest's shell, and starts the agent.
    fn begin(&mut self) -> Result<()> {
        self.vm.shell(BOOT)?;
        self.vm.run(&format!("{AGENT}; dmesg -n 4")).map(drop)
    }

    /// A patch with which /proc/version says something else.
    fn version(&self) -> Result<Lup> {
        Lup::new(self.kind, "version")?.replace("version_proc_show", "lucos_version_proc_show")
    }

    fn is_patched(&mut self) -> Result<bool> {
        Ok(self.vm.run("cat /proc/version")?.contains("patched: Linux"))
    }

    fn apply(&self, lup: &Lup, more: &[&str]) -> Result<Output> {
        let file = lup.write(self.folder.path())?;
        // The usual limit is meant for a guest that runs as fast as its host.
        let slow: &[&str] = if self.vm.patience() > 1 { &["--limit", "900"] } else { &[] };
        self.vm.try_lucos_with("apply", &file, &[more, slow].concat())
    }

    /// Does so while the test goes on.
    fn begin_to_apply(&self, lup: &Lup, more: &[&str]) -> Result<JoinHandle<Result<Output>>> {
        let file = lup.write(self.folder.path())?;
        let mut lucos = self.lucos()?;
        lucos.arg("apply").arg(file).args(more);
        Ok(thread::spawn(move || process::run(&mut lucos, PATCH)))
    }

    fn lucos(&self) -> Result<Command> {
        let lucos: PathBuf = images::program("lucos")?;
        let mut lucos = Command::new(lucos);
        lucos.arg("--api-socket").arg(self.vm.api_socket()).arg("--json");
        Ok(lucos)
    }

    /// Whether the guest has a module of this name.
    fn has_module(&mut self, name: &str) -> Result<bool> {
        Ok(self.vm.run("cat /proc/modules")?.lines().any(|line| line.starts_with(&format!("{name} "))))
    }

    /// Waits until the guest has the module of a patch no more; says how long that took.
    fn wait_until_unloaded(&mut self, id: u64, name: &str) -> Result<Duration> {
        let begin = Instant::now();
        while self.has_module(name)? {
            ensure!(begin.elapsed() < COMMAND, "it stays: {}", self.state(id)?);
        }
        Ok(begin.elapsed())
    }

    /// What a patch is doing.
    fn state(&self, id: u64) -> Result<Value> {
        let list = self.vm.lucos("list")?;
        let patches = list["patches"].as_array().context("no patches")?;
        let found = patches.iter().find(|patch| patch["id"] == id);
        found.cloned().with_context(|| format!("no patch {id} in {list}"))
    }

    /// Waits until a patch is in a state.
    fn wait_for(&self, id: u64, state: &str, limit: Duration) -> Result<Value> {
        let begin = Instant::now();
        loop {
            let patch = self.state(id);
            if let Ok(patch) = &patch
                && patch["state"] == state
            {
                return Ok(patch.clone());
            }
            ensure!(
                begin.elapsed() < limit * self.vm.patience(),
                "patch {id} is not {state} in time: {patch:?}"
            );
        }
    }

    fn text_is_the_images(&self) -> Result<()> {
        let report = self.vm.lucos("text-check")?;
        ensure!(report["unexplained"].as_array().is_some_and(Vec::is_empty), "{}", report["unexplained"]);
        Ok(())
    }
}

/// The patch that a command has printed, which must have ended with `code`.
fn patch(output: &Output, code: i32) -> Result<Value> {
    ensure!(output.code == code, "ended with {}: {}{}", output.code, output.out, output.err);
    serde_json::from_str(&output.out).with_context(|| format!("it printed {:?}", output.out))
}
