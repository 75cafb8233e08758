//! The tiny guest with programs of ours in it, and a socket to control it by.

use std::path::Path;

use anyhow::Result;

use super::{Setting, fresh_socket};
use crate::api::Lucos;
use crate::guest::Guest;
use crate::programs::{MARK, Program, copy_script, page_in, write_disk};
use crate::vmm::{Disk, Machine, Vmm};

/// Where that socket is.
const SOCKET: &str = "control.sock";

/// A machine whose guest has `programs` as `/tmp/0` and so on, and huge pages for them, and runs `script`.
pub(super) fn machine(
    setting: &Setting,
    programs: &[Program],
    huge_pages: usize,
    script: &str,
) -> Result<Machine> {
    let disk = Path::new("programs.img");
    write_disk(disk, programs)?;
    let prepare = copy_script(programs.len());
    let mut machine =
        setting.tiny(&format!("{prepare} echo {huge_pages} > /proc/sys/vm/nr_hugepages; {script}"));
    machine.disks.push(Disk { path: disk.to_owned(), readonly: true });
    machine.control = Some(SOCKET.into());
    Ok(machine)
}

/// Starts `machine`, and waits until a program has said where its huge pages are.
pub(super) fn start(machine: &Machine, huge_pages: usize) -> Result<(Guest, Lucos, Vec<u64>)> {
    fresh_socket(Path::new(SOCKET));
    let mut guest = Guest::start(Vmm::Lucos, machine)?;
    let pages = (0..huge_pages).map(|_| page_in(&guest.line_with(MARK)?.text)).collect::<Result<_>>()?;
    Ok((guest, Lucos::new(Path::new(SOCKET)), pages))
}
