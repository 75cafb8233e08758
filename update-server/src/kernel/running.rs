//! A kernel at the place where it runs.

use super::locate::{NotFound, Place, is_run_by, locate};
use super::model::Model;
use super::space::{AddressSpace, ReadError};
use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::image::Symbol;
use crate::limits::CPUS;
use crate::reads::Recorder;

/// The kernel that runs in a guest, seen through the guest's memory.
#[derive(Debug)]
pub struct Running<'g, M> {
    model: &'g Model,
    place: Place,
    space: AddressSpace<'g, M>,
}

impl<'g, M: Memory> Running<'g, M> {
    /// Finds the kernel of `model` in a guest that stands still.
    pub fn find(model: &'g Model, memory: &'g M, vcpus: &[Vcpu]) -> Result<Self, NotFound> {
        locate(model.image(), memory, vcpus).map(|place| Self::at(model, memory, place))
    }

    /// The kernel of `model` at a place where it was found before.
    pub fn at(model: &'g Model, memory: &'g M, place: Place) -> Self {
        Self { model, place, space: AddressSpace::new(memory, place.tables) }
    }

    /// The same kernel, seen through `memory`, which records what is read.
    pub(crate) fn recorded<'r>(&self, memory: &'r Recorder<'g, M>) -> Running<'r, Recorder<'g, M>>
    where
        'g: 'r,
    {
        Running::at(self.model, memory, self.place)
    }

    /// What is known of every guest with this kernel.
    pub fn model(&self) -> &'g Model {
        self.model
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Where SYSCALL enters it.
    pub fn entry(&self) -> Gva {
        self.now(self.model.symbols.entry)
    }

    /// Whether `vcpu` runs it, and not one that was there before.
    pub fn is_run_by(&self, vcpu: &Vcpu) -> bool {
        is_run_by(self.space.memory(), self.place, self.now(self.model.symbols.own_tables), vcpu)
    }

    /// Its memory.
    pub fn space(&self) -> &AddressSpace<'g, M> {
        &self.space
    }

    /// Where something of the image is now.
    pub fn now(&self, linked: Gva) -> Gva {
        linked.wrapping_add(self.place.distance)
    }

    /// Where something that is at `now` was linked for.
    pub fn linked(&self, now: Gva) -> Gva {
        Gva(now.0.wrapping_sub(self.place.distance))
    }

    /// Where a symbol is now.
    pub fn symbol_now(&self, symbol: &Symbol<'_>) -> Gva {
        if symbol.absolute { symbol.address } else { self.now(symbol.address) }
    }

    /// The per-CPU area of each processor that there can be, by its number. A number that is out of use has none.
    pub fn per_cpu_areas(&self) -> Result<Vec<Option<Gva>>, ReadError> {
        let count = self.space.u32(self.now(self.model.symbols.cpu_ids))?.min(CPUS);
        let offsets = self.now(self.model.symbols.per_cpu_offset);
        // What is not set up holds the address of the first area, which is no address of memory that is still there.
        let unused = self.place.distance.wrapping_add(self.per_cpu_load());
        let area = |cpu| self.space.pointer(offsets.wrapping_add(u64::from(cpu) * 8));
        (0..count)
            .map(|cpu| area(cpu).map(|area| Some(area).filter(|area| area.0 != 0 && area.0 != unused)))
            .collect()
    }

    /// Where the image has the first contents of per-CPU data (`__per_cpu_load`).
    fn per_cpu_load(&self) -> u64 {
        self.model.image().symbols().only("__per_cpu_load").map_or(0, |symbol| symbol.address.0)
    }
}
