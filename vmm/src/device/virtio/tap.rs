//! The host's end of a network interface: a tap that somebody made beforehand.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::net::HEADER;
use crate::sys;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("{name:?} cannot be an interface's name: it takes 1 to 15 characters, no '/', ':' or space")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// There is no such interface.
    #[error(
        "network interface {name} does not exist; make it with: ip tuntap add dev {name} mode tap && ip link \
         set {name} up"
    )]
    Missing {
        /// The interface.
        name: String,
    },
    /// There is one, of another kind.
    #[error(
        "network interface {name} is not a tap; name a tap, or make one: ip tuntap add dev tap0 mode tap"
    )]
    NotTap {
        /// The interface.
        name: String,
    },
    /// Another process is attached to it.
    #[error("tap {name} is in use by another process; stop that one, or make another tap for this guest")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The tap belongs to somebody else.
    #[error(
        "no permission to attach to tap {name}; make it yours: ip tuntap del dev {name} mode tap && ip tuntap \
         add dev {name} mode tap user $USER"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// The tun driver cannot be reached.
    #[error(
        "tap {name} cannot be reached through {TUN_DEVICE}; load its driver (modprobe tun) and check who may \
         open it"
    )]
    Driver {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host refused something else.
    #[error("tap {name} does not work: {step} failed")]
    Host {
        /// The interface.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A tap, attached to and ready for frames with a virtio header of [`HEADER`] bytes. It never blocks.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
    offloads: Offloads,
}

/// What the host may leave to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Completing checksums.
    pub(super) checksum: bool,
    /// Cutting up large TCP frames over IPv4.
    pub(super) tso4: bool,
    /// The same over IPv6.
    pub(super) tso6: bool,
}

impl Offloads {
    fn set(self, file: &File) -> io::Result<()> {
        sys::set_tap_offloads(file, self.checksum, self.tso4, self.tso6)
    }
}

impl Tap {
    /// Attaches to the tap called `name`, which has to exist: the tun driver would make one that nobody
    /// configured, and the guest would find itself on a network of its own.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let name = name.to_owned();
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        let valid = (1..libc::IFNAMSIZ).contains(&name.len()) && name.bytes().all(plain);
        // A percent sign would make the tun driver choose a number (dev_alloc_name()).
        let (true, Ok(c_name)) = (valid && !name.contains('%'), CString::new(name.as_str())) else {
            return Err(TapError::Name { name });
        };
        if !sys::interface_exists(&c_name) {
            return Err(TapError::Missing { name });
        }
        let opened =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_DEVICE);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(TapError::Driver { name, source }),
        };
        let multi_queue = match tun_flags(&name) {
            Some(flags) if flags & libc::IFF_TAP == 0 => return Err(TapError::NotTap { name }),
            Some(flags) => flags & libc::IFF_MULTI_QUEUE != 0,
            // Not a tun device, or a /sys of another network namespace: the driver will tell.
            None => false,
        };
        let flags = match sys::attach_tap(&file, &c_name, multi_queue) {
            Ok(flags) => flags,
            Err(source) => return Err(attach_error(name, source)),
        };
        if !flags.persistent() {
            // It went away since the look above, and this attachment made a new one; closing removes it.
            return Err(TapError::Missing { name });
        }
        let offloads = Offloads::default();
        let tap = Self { name, file, offloads };
        tap.host("setting the header length", sys::set_tap_vnet_header(&tap.file, HEADER))?;
        tap.host("switching off offloads", offloads.set(&tap.file))?;
        Ok(tap)
    }

    /// Another handle on the same attachment, for the next life of a guest: a second attachment would be refused
    /// as long as the first is there.
    pub fn try_clone(&self) -> Result<Self, TapError> {
        let file = self.host("another handle", self.file.try_clone())?;
        Ok(Self { name: self.name.clone(), file, offloads: self.offloads })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the host which work the guest can take over. May wait for other changes to the host's network
    /// (the kernel's RTNL), so it is only done for a change.
    pub(super) fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        if offloads != self.offloads {
            offloads.set(&self.file)?;
            self.offloads = offloads;
        }
        Ok(())
    }

    /// Receives one frame with its header.
    pub(super) fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    /// Sends one frame with its header.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<usize> {
        (&self.file).write(frame)
    }

    fn host<T>(&self, step: &'static str, result: io::Result<T>) -> Result<T, TapError> {
        result.map_err(|source| TapError::Host { name: self.name.clone(), step, source })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The flags that a tun device was made with, from sysfs (Linux, drivers/net/tun.c `tun_flags_show`).
fn tun_flags(name: &str) -> Option<libc::c_int> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok()?;
    libc::c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// Names what `TUNSETIFF` refused (Linux, drivers/net/tun.c `tun_set_iff`).
fn attach_error(name: String, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy { name },
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name },
        Some(libc::EINVAL) => TapError::NotTap { name },
        _ => TapError::Host { name, step: "attaching", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "a/b", "sixteen-letters-", "tap 0", "tap%d", "tap\0", "tap:1", "täp"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_missing_tap_is_not_made() {
        let error = Tap::open("lucos-none").unwrap_err();
        assert!(matches!(error, TapError::Missing { .. }));
        assert!(error.to_string().contains("ip tuntap add dev lucos-none mode tap"), "{error}");
        assert!(!sys::interface_exists(c"lucos-none"));
    }

    #[test]
    fn what_the_driver_refuses_is_named() {
        let error = |errno| attach_error("t".into(), io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::EBUSY), TapError::Busy { .. }));
        assert!(matches!(error(libc::EPERM), TapError::Permission { .. }));
        assert!(matches!(error(libc::EINVAL), TapError::NotTap { .. }));
        assert!(matches!(error(libc::ENOMEM), TapError::Host { .. }));
    }
}
