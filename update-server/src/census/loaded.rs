//! Code that the kernel runs and that is not in its image.

use std::sync::Arc;

use super::doubt::Doubt;
use crate::guest::Memory;
use crate::kernel::bpf::{BpfText, bpf_texts};
use crate::kernel::list::Cut;
use crate::kernel::modules::{Module, modules};
use crate::kernel::probes::{Probe, probes};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::kernel::trampolines::{Trampoline, trampolines};

/// All of it, at one time.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Modules.
    pub modules: Vec<Arc<Module>>,
    /// Trampolines that ftrace has made.
    pub trampolines: Vec<Trampoline>,
    /// What BPF has made.
    pub bpf: Vec<BpfText>,
    /// Probes, and what they have made.
    pub probes: Vec<Probe>,
    /// Whether there are more probes than those.
    probes_cut: Option<Cut>,
    /// What of it could not be read.
    doubts: Vec<Doubt>,
}

impl Loaded {
    /// Reads it, as far as it is not in `known`, which was read before.
    pub fn read(kernel: &Running<'_, impl Memory>, known: &Self) -> Result<Self, ReadError> {
        let modules = modules(kernel, &known.modules);
        let doubt = |source| Doubt::Unreadable { what: "the list of modules", source };
        let (trampolines, bpf, probes) = (trampolines(kernel)?, bpf_texts(kernel)?, probes(kernel)?);
        let cuts = modules.cuts.into_iter().chain(trampolines.cut).chain(bpf.cut).chain(probes.cut);
        let doubts = modules.end.map(doubt).into_iter().chain(cuts.map(Doubt::Cut)).collect();
        Ok(Self {
            modules: modules.found,
            trampolines: trampolines.entries,
            bpf: bpf.entries,
            probes: probes.entries,
            probes_cut: probes.cut,
            doubts,
        })
    }

    /// That there may be probes which are not known; a place where none is known may have one then.
    pub(crate) fn more_probes(&self) -> Option<Cut> {
        self.probes_cut
    }

    /// What of it could not be read.
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }
}
