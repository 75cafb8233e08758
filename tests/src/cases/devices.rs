//! Disks and the agent's serial port.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::boot::check_file_system;
use crate::deadlines::{BOOT, COMMAND, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::images;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("devices::disks_flush_and_read_only", Tier::Gate, disks),
    Test::new("devices::agent_serial_port_both_ways", Tier::Gate, agent),
];

/// Bytes that no two positions share, as far as a test can tell.
pub(super) fn noise(len: usize) -> Vec<u8> {
    // The 64-bit xorshift generator of Marsaglia (2003), with his triple (13, 7, 17).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn file_sha256(path: &Path) -> Result<String> {
    Ok(sha256(&fs::read(path)?))
}

fn disks() -> Result<()> {
    const MIB: usize = 1 << 20;
    let folder = images::folder()?;
    let root = images::copy("tiny.img", folder.path())?;
    let data = images::blank(folder.path(), "data.img", 16)?;
    let fixed = folder.path().join("fixed.img");
    fs::write(&fixed, noise(4 * MIB))?;
    let fixed_sum = file_sha256(&fixed)?;
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.disk(&root).disk(&data).read_only_disk(&fixed);
    let mut vm = builder.cpus(2).start()?;
    vm.shell(BOOT)?;

    // Which is which: by their sizes, in the order of the command line.
    let sizes = vm.run("cat /sys/block/nvme0n1/size /sys/block/nvme1n1/size /sys/block/nvme2n1/size")?;
    ensure!(sizes.lines().collect::<Vec<_>>() == ["65536", "32768", "8192"], "sizes in blocks: {sizes}");
    let read_only = vm.run("cat /sys/block/nvme0n1/ro /sys/block/nvme1n1/ro /sys/block/nvme2n1/ro")?;
    ensure!(read_only.lines().collect::<Vec<_>>() == ["0", "0", "1"], "read-only disks: {read_only}");

    // The read-only disk is read as it is, and not written, whatever the guest tries.
    let seen = vm.run("sha256sum < /dev/nvme2n1")?;
    ensure!(seen.contains(&fixed_sum), "the read-only disk reads as {seen}");
    vm.run("blockdev --setrw /dev/nvme2n1 || true")?;
    let write = "dd if=/dev/zero of=/dev/nvme2n1 bs=4k count=8 conv=fsync";
    let (output, status) = vm.run_any(write, COMMAND)?;
    ensure!(status != 0, "the guest's write to a read-only disk succeeded: {output}");
    ensure!(file_sha256(&fixed)? == fixed_sum, "the guest changed a read-only disk");

    // What is written and flushed is in the file, while the guest still runs.
    let flushes = vm.device_counter("disk1", "flushes")?;
    vm.run("head -c 8388608 /dev/urandom > /tmp/data")?;
    let sum = vm.run("sha256sum < /tmp/data")?;
    vm.run_within("dd if=/tmp/data of=/dev/nvme1n1 bs=1M conv=fsync", LONG_COMMAND)?;
    ensure!(vm.device_counter("disk1", "flushes")? > flushes, "fsync in the guest flushed nothing");
    let written = fs::read(&data)?;
    ensure!(
        sum.contains(&sha256(&written[..8 * MIB])),
        "the disk's file has other data than the guest wrote"
    );
    ensure!(written[8 * MIB..].iter().all(|&byte| byte == 0), "more was written than the guest asked for");
    let errors = vm.device_counter("disk1", "host_errors")?;
    ensure!(errors == 0, "{errors} errors of the host");

    vm.power_off()?;
    check_file_system(&root)
}

fn agent() -> Result<()> {
    // A serial line of 16 KiB each way: enough to fill every queue on the way many times.
    const LEN: usize = 16 << 10;
    let folder = images::folder()?;
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.with_agent(folder.path());
    let mut vm = builder.start_in(folder)?;
    vm.shell(BOOT)?;
    let mode = fs::metadata(vm.agent_socket())?.permissions();
    ensure!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777 == 0o600, "others may talk to the agent");
    let mut socket = UnixStream::connect(vm.agent_socket()).context("the agent's socket")?;
    socket.set_read_timeout(Some(COMMAND))?;
    vm.run("stty -F /dev/ttyS1 raw -echo")?;

    // To the guest: every byte value, none of them changed by a terminal's ideas.
    let sent = noise(LEN);
    vm.type_line(&format!("head -c {LEN} /dev/ttyS1 > /tmp/got; echo got-\"it\""))?;
    // The port must be open before the first byte: a closed serial port drops what comes.
    thread::sleep(Duration::from_secs(2));
    socket.write_all(&sent)?;
    vm.expect("got-it", LONG_COMMAND)?;
    let sum = vm.run("sha256sum < /tmp/got")?;
    ensure!(sum.contains(&sha256(&sent)), "the guest received something else than was sent");

    // And back.
    vm.type_line("cat /tmp/got > /dev/ttyS1")?;
    let mut received = vec![0; LEN];
    socket.read_exact(&mut received).context("the guest's bytes")?;
    ensure!(received == sent, "something else came back than was sent");

    // Another peer can take over, and the VMM survives that nobody listens.
    drop(socket);
    vm.run("head -c 1000 /dev/zero > /dev/ttyS1")?;
    let mut socket = UnixStream::connect(vm.agent_socket())?;
    socket.set_read_timeout(Some(COMMAND))?;
    thread::sleep(Duration::from_secs(1));
    vm.run("echo again > /dev/ttyS1")?;
    let mut received = [0; 5];
    socket.read_exact(&mut received)?;
    ensure!(&received == b"again", "a second peer received {received:?}");
    vm.type_line("poweroff -f")?;
    vm.expect_exit(0, crate::deadlines::EXIT)
}
