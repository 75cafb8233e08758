//! A full Debian: systemd, udev, and the drivers that are modules.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};

use super::console::{ensure_restored, wait_raw};
use super::devices::{noise, sha256};
use crate::deadlines::{COMMAND, DEBIAN_BOOT, LONG_COMMAND, SHUTDOWN};
use crate::harness::{Test, Tier};
use crate::vm::Vm;
use crate::{images, process};

pub(super) const TESTS: &[Test] = &[
    Test::new("debian::login_by_hand_and_ctrl_a_p", Tier::Gate, login),
    Test::new("debian::network_entropy_and_power_button", Tier::Gate, devices),
];

fn disk() -> Result<PathBuf> {
    copied("debian.img")
}

/// A disk, copied once: these are the largest of all, and all tests leave them as they find them.
pub(super) fn copied(name: &str) -> Result<PathBuf> {
    let scratch = std::env::var_os("LUCOS_SCRATCH").context("LUCOS_SCRATCH is not set")?;
    let path = Path::new(&scratch).join(name);
    if !path.exists() {
        images::copy(name, Path::new(&scratch))?;
    }
    Ok(path)
}

fn login() -> Result<()> {
    let disk = disk()?;
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).cpus(2).on_a_terminal();
    let mut vm = builder.start()?;
    wait_raw(&vm)?;
    vm.log_in(DEBIAN_BOOT)?;
    let state = vm.run_any("systemctl is-system-running --wait", DEBIAN_BOOT)?.0;
    let failed = vm.run("systemctl --failed --no-legend --plain --no-pager")?;
    ensure!(failed.is_empty(), "units failed: {failed}");
    ensure!(state.contains("running"), "systemd says that the system is {state}");
    ensure!(vm.run("nproc")?.ends_with('2'), "not every vCPU is online");
    ensure!(vm.run("tty")?.contains("/dev/ttyS0"));
    vm.type_keys(b"\x01p")?;
    vm.expect_exit(0, SHUTDOWN)?;
    ensure_restored(&vm)
}

/// A tap of the host, taken away when dropped.
struct Tap(&'static str);

/// Addresses of the block that is reserved for documentation (RFC 5737): no network of the host has them.
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";

impl Tap {
    fn new() -> Result<Self> {
        let tap = Self("lucostest0");
        let ip = |line: &str| process::host("ip", line.split(' '));
        ip(&format!("tuntap add dev {} mode tap", tap.0))?;
        ip(&format!("addr add {HOST}/24 dev {}", tap.0))?;
        ip(&format!("link set {} up", tap.0))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = process::host("ip", ["link", "del", self.0]) {
            eprintln!("cannot take the tap away: {error:#}");
        }
    }
}

fn devices() -> Result<()> {
    let disk = disk()?;
    let tap = Tap::new()?;
    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).cpus(2).net(tap.0).start()?;
    vm.log_in(DEBIAN_BOOT)?;

    entropy(&mut vm)?;
    // The address is given by hand here; the service would go on asking for one.
    vm.run("systemctl stop systemd-networkd.socket systemd-networkd.service")?;
    let card = vm.run("basename $(dirname $(ls -d /sys/class/net/*/device))")?;
    let card = card.lines().last().unwrap_or_default().trim().to_owned();
    vm.run(&format!("ip addr add {GUEST}/24 dev {card}; ip link set {card} up"))?;
    let ping = vm.run(&format!("ping -c 5 -i 0.3 -W 5 {HOST}"))?;
    ensure!(ping.contains(" 0% packet loss"), "the guest's ping: {ping}");
    let ping = process::host("ping", ["-c", "5", "-i", "0.3", "-W", "5", GUEST])?;
    ensure!(ping.contains(" 0% packet loss"), "the host's ping: {ping}");
    transfer(&mut vm)?;

    vm.lucos("power-button")?;
    vm.expect_exit(0, SHUTDOWN)?;
    super::boot::check_file_system(&disk)
}

fn entropy(vm: &mut Vm) -> Result<()> {
    let current = vm.run("udevadm settle; cat /sys/class/misc/hw_random/rng_current")?;
    ensure!(current.contains("virtio_rng"), "the guest's source of entropy is {current}");
    let draw = "head -c 64 /dev/hwrng | sha256sum";
    let (first, second) = (vm.run(draw)?, vm.run(draw)?);
    let none = sha256(&[0; 64]);
    ensure!(first != second && !first.contains(&none), "entropy: {first}, then {second}");
    Ok(())
}

/// TCP in both directions, by nothing but a shell in the guest.
fn transfer(vm: &mut Vm) -> Result<()> {
    const LEN: usize = 4 << 20;
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    let sent = noise(LEN);
    let sum = sha256(&sent);

    let to_guest = thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&sent)?;
        drop(stream);
        let (mut stream, _) = listener.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    });
    vm.run_within(&format!("cat < /dev/tcp/{HOST}/{port} > /tmp/got"), LONG_COMMAND)?;
    let got = vm.run("sha256sum < /tmp/got")?;
    ensure!(got.contains(&sum), "the guest received {got} and not {sum}");
    vm.run_within(&format!("cat /tmp/got > /dev/tcp/{HOST}/{port}"), LONG_COMMAND)?;
    let begin = std::time::Instant::now();
    while !to_guest.is_finished() {
        ensure!(begin.elapsed() < COMMAND, "the host did not get the end of the guest's stream");
        thread::sleep(std::time::Duration::from_millis(20));
    }
    let received = to_guest.join().ok().context("the host's end of the transfer panicked")??;
    ensure!(sha256(&received) == sum, "the host received something else than the guest sent");
    Ok(())
}
