//! The VMM killed in the middle of the guest's writes.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::deadlines::{BOOT, EXIT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::vm::Vm;
use crate::{images, process};

pub(super) const TESTS: &[Test] =
    &[Test::new("crash::kill_9_loses_nothing_that_was_flushed", Tier::Gate, kill_9)];

/// Records that the guest reports before it is killed.
const RECORDS: u32 = 40;

fn kill_9() -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("tiny.img", folder.path())?;
    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).cpus(2).start()?;
    vm.shell(BOOT)?;
    // Every record changes a file, makes another and a folder, and is reported after it is on the disk. Beside
    // it, a stream of writes that nobody flushes keeps the disk busy.
    vm.type_line("while :; do head -c 2097152 /dev/urandom > /stream; rm /stream; done &")?;
    vm.type_line(
        "i=0; while i=$((i+1)); mkdir /d$i \
         && echo record $i | dd of=/records oflag=append conv=notrunc,fsync 2> /dev/null \
         && echo $i | dd of=/d$i/f conv=fsync 2> /dev/null; do echo durable-$i.; done",
    )?;
    vm.expect(&format!("durable-{RECORDS}."), LONG_COMMAND)?;
    vm.signal(Signal::KILL)?;
    let code = vm.wait_exit(EXIT)?;
    ensure!(code == 137, "after kill -9, lucos-vmm ended with {code}");

    let console = vm.console().text();
    let numbers = console.split("durable-").filter_map(|rest| rest.split_once('.')?.0.parse::<u32>().ok());
    let last = numbers.max().context("no record was reported")?;
    drop(vm);
    // What a mount does first: the journal is replayed. Then nothing may be wrong.
    process::host("e2fsck", ["-E".as_ref(), "journal_only".as_ref(), "-y".as_ref(), disk.as_os_str()])
        .or_else(|error| {
            // 1: "errors corrected" is what e2fsck says of a replay (e2fsck(8)).
            if error.to_string().contains("ended with 1:") { Ok(String::new()) } else { Err(error) }
        })?;
    process::host("e2fsck", ["-fn".as_ref(), disk.as_os_str()]).context("after the journal was replayed")?;
    let read = |path: &str| process::host("debugfs", ["-R".as_ref(), path.as_ref(), disk.as_os_str()]);
    let records = read("cat /records")?;
    for number in 1..=last {
        ensure!(
            records.lines().any(|line| line == format!("record {number}")),
            "record {number} of {last} is lost"
        );
    }
    let own = read(&format!("cat /d{last}/f"))?;
    ensure!(own.trim() == last.to_string(), "the file of record {last} holds {own:?}");
    Ok(())
}
