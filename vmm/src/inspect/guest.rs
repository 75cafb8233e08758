//! The update server's seam, for a guest of this VMM.

use update_server::addr::Gpa;
use update_server::guest::{Memory, NoRam, Paused, Vcpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;

/// The guest's RAM, whether it runs or not.
#[derive(Debug)]
pub struct GuestBytes<'a>(pub &'a GuestMemory);

impl Memory for GuestBytes<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        self.0.read_slice(into, GuestAddress(at.0)).map_err(|_| NoRam { at, len: into.len() })
    }
}

/// A guest that is paused as long as this exists.
pub struct StillGuest<'a> {
    memory: GuestBytes<'a>,
    vcpus: Vec<Vcpu>,
    resume: Option<Box<dyn FnOnce() + 'a>>,
}

impl<'a> StillGuest<'a> {
    /// A guest that stands still, with its vCPUs as they stand; `resume` is called in the end.
    pub fn new(memory: &'a GuestMemory, vcpus: Vec<Vcpu>, resume: Option<Box<dyn FnOnce() + 'a>>) -> Self {
        Self { memory: GuestBytes(memory), vcpus, resume }
    }

    /// Says how its vCPUs stand.
    pub fn set_vcpus(&mut self, vcpus: Vec<Vcpu>) {
        self.vcpus = vcpus;
    }

    /// Its vCPUs.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }
}

impl Drop for StillGuest<'_> {
    fn drop(&mut self) {
        if let Some(resume) = self.resume.take() {
            resume();
        }
    }
}

impl std::fmt::Debug for StillGuest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StillGuest").field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

impl Memory for StillGuest<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        self.memory.read(at, into)
    }
}

impl Paused for StillGuest<'_> {
    fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), NoRam> {
        let outside = NoRam { at, len: bytes.len() };
        let ram = self.memory.0;
        let place = GuestAddress(at.0);
        if !ram.check_range(place, bytes.len()) {
            return Err(outside);
        }
        ram.write_slice(bytes, place).map_err(|_| outside)
    }
}
