//! Real taps for tests, and what [`Tap::open`] says about those that are none.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::eventually;
use crate::config::MacAddress;
use crate::device::virtio::{Tap, TapError};

/// A tap with an address on each end, removed when dropped.
pub(super) struct TestTap {
    pub(super) name: String,
    pub(super) host: Ipv4Addr,
    pub(super) guest: Ipv4Addr,
    pub(super) mac: MacAddress,
}

/// Runs ip(8).
fn ip(arguments: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl TestTap {
    /// A tap for one test; says loudly that the test is skipped when this machine lets nobody make one.
    pub(super) fn new() -> Option<Self> {
        Self::with("mode tap")
    }

    pub(super) fn with(kind: &str) -> Option<Self> {
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = process::id();
        let third = id.to_le_bytes()[0];
        // The range set aside for such tests (RFC 2544); four addresses for each tap.
        let host = Ipv4Addr::new(198, 18, third, number * 4 + 1);
        let guest = Ipv4Addr::new(198, 18, third, number * 4 + 2);
        let tap = Self {
            name: format!("lt{id}.{number}"),
            host,
            guest,
            mac: MacAddress::from_random([0x5e; 6].map(|byte: u8| byte ^ number.to_le_bytes()[0])),
        };
        let Self { name, mac, .. } = &tap;
        let made = ip(&format!("tuntap add dev {name} {kind}"))
            .and_then(|()| ip(&format!("link set {name} addrgenmode none up")))
            .and_then(|()| ip(&format!("addr add {host}/30 dev {name}")))
            .and_then(|()| {
                if kind.contains("tun ") || kind.ends_with("tun") {
                    return Ok(());
                }
                ip(&format!("neigh add {guest} lladdr {mac} dev {name}"))
            });
        if let Err(why) = made {
            // Straight to the descriptor: the test harness would swallow it.
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            let _ = writeln!(io::stderr(), "SKIPPED: {test}: no tap can be made here: {why}");
            return None;
        }
        Some(tap)
    }

    pub(super) fn open(&self) -> Tap {
        Tap::open(&self.name).unwrap()
    }

    /// Asserts that it can be attached to again: soon, because another test that starts a process at this
    /// moment keeps a copy of every descriptor until that process runs its program.
    pub(super) fn is_freed(&self) {
        eventually("a free tap", || Tap::open(&self.name).is_ok());
    }

    /// The address of the host's end.
    pub(super) fn host_mac(&self) -> [u8; 6] {
        let text = fs::read_to_string(format!("/sys/class/net/{}/address", self.name)).unwrap();
        text.trim().parse::<MacAddress>().unwrap().bytes()
    }

    /// Whether frames get through to whoever is attached.
    pub(super) fn is_up(&self) -> bool {
        fs::read_to_string(format!("/sys/class/net/{}/operstate", self.name)).unwrap().trim() == "up"
    }

    /// A socket of the host's on this network.
    pub(super) fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind((self.host, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    pub(super) fn remove(&self) {
        let _ = ip(&format!("link del {}", self.name));
    }
}

impl Drop for TestTap {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn a_tap_in_use_is_refused_and_free_again_later() {
    let Some(tap) = TestTap::new() else { return };
    let first = tap.open();
    let error = Tap::open(&tap.name).unwrap_err();
    assert!(matches!(error, TapError::Busy { .. }), "{error}");
    drop(first);
    tap.is_freed();
}

#[test]
fn interfaces_that_are_no_taps_are_refused() {
    let Some(tun) = TestTap::with("mode tun") else { return };
    for name in ["lo", &tun.name] {
        let error = Tap::open(name).unwrap_err();
        assert!(matches!(error, TapError::NotTap { .. }), "{error}");
    }
}

#[test]
fn a_tap_with_many_queues_will_do() {
    let Some(tap) = TestTap::with("mode tap multi_queue") else { return };
    tap.open();
}
