//! The ioctls of `/dev/net/tun` (Linux, Documentation/networking/tuntap.rst and `linux/if_tun.h`).

use std::ffi::CStr;
use std::fs::File;
use std::io;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// What `TUNGETIFF` reported of an interface that a file was attached to.
#[derive(Debug, Clone, Copy)]
pub struct TapFlags(libc::c_int);

impl TapFlags {
    /// Whether the interface outlives the file.
    pub fn persistent(self) -> bool {
        self.0 & libc::IFF_PERSIST != 0
    }
}

/// Whether this network namespace has an interface called `name`.
pub fn interface_exists(name: &CStr) -> bool {
    // SAFETY: `name` is a valid C string for the duration of the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Attaches `file` (an open `/dev/net/tun`) to the tap `name`: whole Ethernet frames behind a virtio header,
/// without packet information. `multi_queue` has to be what the interface was made with.
pub fn attach_tap(file: &File, name: &CStr, multi_queue: bool) -> io::Result<TapFlags> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: low_half(flags) },
    };
    let bytes = name.to_bytes();
    if bytes.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF writes one `ifreq`.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF filled in `ifru_flags`; it is an integer, for which every bit pattern is valid.
    let [low, high] = unsafe { request.ifr_ifru.ifru_flags }.to_ne_bytes();
    Ok(TapFlags(libc::c_int::from(u16::from_ne_bytes([low, high]))))
}

/// Sets the length of the virtio header that precedes each frame, in bytes.
pub fn set_tap_vnet_header(file: &File, len: u8) -> io::Result<()> {
    let len = libc::c_int::from(len);
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ, &len) })
}

/// Tells the host what the guest can take: partial checksums, and frames to be segmented.
pub fn set_tap_offloads(file: &File, checksum: bool, tso4: bool, tso6: bool) -> io::Result<()> {
    let mut offloads = 0;
    for (wanted, bit) in [(checksum, libc::TUN_F_CSUM), (tso4, libc::TUN_F_TSO4), (tso6, libc::TUN_F_TSO6)] {
        if wanted {
            offloads |= bit;
        }
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    check(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// The lower 16 bits, as `ifr_flags` has them: the flags used here are all below `IFF_VNET_HDR << 1`.
fn low_half(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
