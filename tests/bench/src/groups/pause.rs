//! The shortest way out of the guest and back, and how long it takes to stop busy vCPUs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Setting, fresh_socket};
use crate::api::{Lucos, Qmp, Stop};
use crate::figure::Figure;
use crate::guest::{Guest, insist};
use crate::programs::{copy_script, port_reads, write_disk};
use crate::samples::Samples;
use crate::vmm::{Disk, Machine, Vmm};

/// Reads of the port in one run of the program: enough that starting it does not matter.
const READS: u32 = 20_000;
/// Runs of the program.
const RUNS: u16 = 9;
/// Pauses of each machine.
const PAUSES: u32 = 100;
/// Between two pauses, so that every vCPU is back in its loop.
const RUN_TIME: Duration = Duration::from_millis(20);

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let exit = insist(|| port_read(setting, Vmm::Lucos))?;
    // Not q35: on an emulated host the processor denies a q35 guest the port that ioperm(2) has allowed.
    let reference = insist(|| port_read(setting, Vmm::Microvm))?.median();
    Figure::median("pause.port_read", &exit, "us").against(Vmm::Microvm.name(), reference).print()?;
    for cpus in [1, 2, 4] {
        pauses(setting, cpus, exit.median())?;
    }
    Ok(())
}

/// The time of one read of a port that nobody answers.
fn port_read(setting: &Setting, vmm: Vmm) -> Result<Samples> {
    let program = Path::new("port-reads.img");
    write_disk(program, &[port_reads(READS)?])?;
    // The quotes tell what is said from the command line that the kernel logs.
    let script = format!(
        "{} for i in $(seq {RUNS}); do echo reads 'begin'; /tmp/0 && echo reads 'end'; done",
        copy_script(1)
    );
    let mut machine = setting.tiny(&script);
    machine.disks.push(Disk { path: program.to_owned(), readonly: true });
    let mut guest = Guest::start(vmm, &machine)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let begin = guest.line_with("reads begin")?.at;
        let end = guest.line_with("reads end")?.at;
        times.push(end.saturating_sub(begin) / READS);
    }
    guest.off()?;
    Ok(Samples::micros(&times))
}

/// Times of many pauses of one machine.
#[derive(Debug, Default)]
struct Times {
    /// As the VMM says.
    took: Vec<Duration>,
    /// From the first request to the answer to the second, seen from outside.
    round_trip: Vec<Duration>,
}

fn pauses(setting: &Setting, cpus: u8, exit: f64) -> Result<()> {
    let socket = Path::new("control.sock");
    // One loop in user space for each vCPU.
    let mut machine = setting
        .tiny(&format!("for i in $(seq {cpus}); do while :; do :; done & done; echo all 'busy'; wait"));
    machine.cpus = cpus;
    machine.control = Some(socket.to_owned());
    let ours = insist(|| {
        fresh_socket(socket);
        stop_often(Vmm::Lucos, &machine, || Ok(Box::new(Lucos::new(socket))))
    })?;
    let theirs = insist(|| {
        fresh_socket(socket);
        stop_often(Vmm::Q35, &machine, || Ok(Box::new(Qmp::new(socket)?)))
    })?;

    let took = Samples::micros(&ours.took);
    let exit_name = "pause.port_read";
    let name = |what: &str| format!("pause.{what}_{cpus}cpu");
    Figure::median(name("took_median"), &took, "us").against(exit_name, exit).print()?;
    Figure::of(name("took_p99"), took.percentile(99), &took, "us").against(exit_name, exit).print()?;
    let theirs = Samples::micros(&theirs.round_trip).median();
    Figure::median(name("round_trip"), &Samples::micros(&ours.round_trip), "us")
        .against("qemu q35 stop and cont", theirs)
        .print()
}

fn stop_often(vmm: Vmm, machine: &Machine, control: impl Fn() -> Result<Box<dyn Stop>>) -> Result<Times> {
    let mut guest = Guest::start(vmm, machine)?;
    guest.line_with("all busy")?;
    let mut control = control()?;
    let mut times = Times::default();
    for _ in 0..PAUSES {
        std::thread::sleep(RUN_TIME);
        let begin = Instant::now();
        let stopped = control.stop()?;
        control.go_on()?;
        times.round_trip.push(begin.elapsed());
        times.took.extend(stopped.took);
    }
    Ok(times)
}
