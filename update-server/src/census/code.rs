//! Whose code is at an address, and by what table its frames are walked.

use std::fmt::Write;
use std::ops::Range;

use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{OrcEntry, SiteKind, Symbols};
use crate::kernel::bpf::BpfText;
use crate::kernel::modules::Module;
use crate::kernel::probes::{Detour, Probe};
use crate::kernel::running::Running;
use crate::kernel::trampolines::Trampoline;
use crate::steps::Steps;

use super::loaded::Loaded;
use super::made;

/// What the names of thunks for indirect calls and jumps begin with (`arch/x86/lib/retpoline.S`).
const THUNK: &str = "__x86_indirect_";
/// More than any thunk has.
const THUNK_BYTES: usize = 256;

/// Whose code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind<'a> {
    /// The kernel's own.
    Kernel,
    /// A module's.
    Module(&'a Module),
    /// A copy that ftrace has made of one of its trampolines.
    Trampoline(&'a Trampoline),
    /// Made by BPF.
    Bpf(&'a BpfText),
    /// A probe's copy of the instruction that it is on.
    Slot(&'a Probe),
    /// What an optimized probe has put in the place of some instructions.
    Detour(&'a Probe, &'a Detour),
    /// Nobody's that is known.
    Unknown,
}

impl PartialEq for Module {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text() && self.name == other.name
    }
}

impl Eq for Module {}

/// All code that the kernel may run.
#[derive(Debug)]
pub struct Code<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    /// The kernel's text, where it is now: from first to last section with instructions.
    text: Vec<Range<Gva>>,
    /// All other code, by its first address.
    others: Vec<(Range<Gva>, CodeKind<'a>)>,
    /// By address.
    probes: &'a [Probe],
}

impl<'a, 'g, M: Memory> Code<'a, 'g, M> {
    /// The code of a kernel with what it has loaded.
    pub fn new(kernel: &'a Running<'g, M>, loaded: &'a Loaded) -> Self {
        let image = kernel.model().image();
        let text = image
            .sections()
            .filter(|(name, _, _)| matches!(*name, ".text" | ".init.text" | ".altinstr_aux" | ".exit.text"))
            .map(|(_, start, len)| {
                let start = kernel.now(start);
                start..start.wrapping_add(len as u64)
            })
            .collect();
        let texts = loaded.modules.iter().flat_map(|module| {
            [module.text(), module.init_text()].map(|text| (text.clone(), CodeKind::Module(module)))
        });
        let copies = loaded.trampolines.iter().map(|copy| (copy.text.clone(), CodeKind::Trampoline(copy)));
        let bpf = loaded.bpf.iter().map(|piece| (piece.text.clone(), CodeKind::Bpf(piece)));
        let slots =
            loaded.probes.iter().filter_map(|probe| Some((probe.slot.clone()?, CodeKind::Slot(probe))));
        let detours = loaded.probes.iter().filter_map(|probe| {
            let detour = probe.detour.as_ref()?;
            Some((detour.text.clone(), CodeKind::Detour(probe, detour)))
        });
        let made = copies.chain(bpf).chain(slots).chain(detours);
        let mut others: Vec<_> = texts.chain(made).filter(|(text, _)| !text.is_empty()).collect();
        others.sort_by_key(|(text, _)| text.start);
        Self { kernel, text, others, probes: &loaded.probes }
    }

    /// Whose code is at `at`.
    pub fn kind(&self, at: Gva) -> CodeKind<'a> {
        if self.text.iter().any(|range| range.contains(&at)) {
            return CodeKind::Kernel;
        }
        // Two pieces of code do not overlap, unless the guest lies.
        let behind = self.others.partition_point(|(text, _)| text.start <= at);
        let nearest = behind.checked_sub(1).map(|index| &self.others[index]);
        nearest.filter(|(text, _)| text.contains(&at)).map_or(CodeKind::Unknown, |(_, kind)| *kind)
    }

    /// How to walk on from an instruction at `at`; `steps` is what may be looked at of code that has no table.
    pub(super) fn orc(&self, at: Gva, steps: &Steps) -> Result<OrcEntry, String> {
        let entry = match self.kind(at) {
            CodeKind::Kernel => self.kernel.model().image().orc().entry(self.kernel.linked(at)),
            CodeKind::Module(module) => match &module.orc {
                Ok(orc) => orc.entry(at),
                Err(why) => return Err(format!("the unwind table of module {}: {why}", module.name)),
            },
            CodeKind::Trampoline(trampoline) => {
                let original = trampoline.copy_of.wrapping_add(at.0 - trampoline.text.start.0);
                self.kernel.model().image().orc().entry(original)
            }
            CodeKind::Bpf(piece) => return made::bpf(self.kernel, piece, at, steps),
            CodeKind::Slot(probe) => return made::slot(self, probe, at, steps),
            CodeKind::Detour(probe, detour) => return made::detour(self, probe, detour, at, steps),
            CodeKind::Unknown => return Err("code of nobody that is known".to_owned()),
        };
        entry.ok_or_else(|| "no entry in the unwind table".to_owned())
    }

    /// The piece of patched code that `at` is in, with its length: an alternative, or a thunk for indirect calls.
    pub(super) fn patched(&self, at: Gva) -> Option<(Gva, usize)> {
        if self.kind(at) != CodeKind::Kernel {
            return None;
        }
        let image = self.kernel.model().image();
        let linked = self.kernel.linked(at);
        let (symbol, _) = image.symbols().containing(linked)?;
        if symbol.name.starts_with(THUNK) {
            let len = image.symbols().next_behind(linked)?.offset_from(symbol.address)?;
            return Some((self.kernel.now(symbol.address), usize::try_from(len).ok()?.min(THUNK_BYTES)));
        }
        let sites = image.sites().overlapping(linked, 1);
        let site = sites.filter(|site| site.kind == SiteKind::Alternative).max_by_key(|site| site.len)?;
        Some((self.kernel.now(site.start), usize::from(site.len)))
    }

    /// The probe on the instruction at `at`.
    pub(super) fn probe_on(&self, at: Gva) -> Option<&'a Probe> {
        self.probes.binary_search_by_key(&at, |probe| probe.at).ok().map(|index| &self.probes[index])
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> &'a Running<'g, M> {
        self.kernel
    }

    /// The name of where a probe is. One on code that is made in turn, which cannot be, has only an address.
    fn place_of(&self, probe: &Probe) -> String {
        match self.kind(probe.at) {
            CodeKind::Kernel | CodeKind::Module(_) => self.name(probe.at, false),
            _ => probe.at.to_string(),
        }
    }

    /// An address as the kernel's own traces have it: `function+0x12/0x34 [module]`. One behind a call belongs to the
    /// function that calls, even if the call is its last instruction.
    pub fn name(&self, at: Gva, behind_call: bool) -> String {
        let within = Gva(at.0.wrapping_sub(u64::from(behind_call)));
        let (symbols, place, suffix): (&Symbols, Gva, _) = match self.kind(within) {
            CodeKind::Kernel => {
                (self.kernel.model().image().symbols(), self.kernel.linked(within), String::new())
            }
            CodeKind::Module(module) => (&module.symbols, within, format!(" [{}]", module.name)),
            CodeKind::Trampoline(_) => return format!("{at} [ftrace trampoline]"),
            CodeKind::Bpf(piece) => {
                let name = &piece.name;
                let (offset, len) = (at.0 - piece.text.start.0, piece.text.end.0 - piece.text.start.0);
                return format!("{name}+{offset:#x}/{len:#x}");
            }
            CodeKind::Slot(probe) => return format!("{} [kprobe slot]", self.place_of(probe)),
            CodeKind::Detour(probe, _) => return format!("{} [kprobe detour]", self.place_of(probe)),
            CodeKind::Unknown => return at.to_string(),
        };
        let Some((symbol, offset)) = symbols.containing(place) else { return format!("{at}{suffix}") };
        let mut text = format!("{}+{:#x}", symbol.name, offset + u64::from(behind_call));
        if let Some(next) = symbols.next_behind(place) {
            let _ = write!(text, "/{:#x}", next.0 - symbol.address.0);
        }
        text + &suffix
    }
}
