//! Whose code is at an address, and by what table its frames are walked.

use std::fmt::Write;

use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{OrcEntry, Symbols};
use crate::kernel::modules::Module;
use crate::kernel::running::Running;

/// Whose code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind<'a> {
    /// The kernel's own.
    Kernel,
    /// A module's.
    Module(&'a Module),
    /// Nobody's that is known.
    Unknown,
}

impl PartialEq for Module {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.name == other.name
    }
}

impl Eq for Module {}

/// All code that the kernel may run.
#[derive(Debug)]
pub struct Code<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    modules: &'a [Module],
    /// The kernel's text, where it is now: from first to last section with instructions.
    text: Vec<std::ops::Range<Gva>>,
}

impl<'a, 'g, M: Memory> Code<'a, 'g, M> {
    /// The code of a kernel with these modules.
    pub fn new(kernel: &'a Running<'g, M>, modules: &'a [Module]) -> Self {
        let image = kernel.model().image();
        let text = image
            .sections()
            .filter(|(name, _, _)| matches!(*name, ".text" | ".init.text" | ".altinstr_aux" | ".exit.text"))
            .map(|(_, start, len)| {
                let start = kernel.now(start);
                start..start.wrapping_add(len as u64)
            })
            .collect();
        Self { kernel, modules, text }
    }

    /// Whose code is at `at`.
    pub fn kind(&self, at: Gva) -> CodeKind<'a> {
        if self.text.iter().any(|range| range.contains(&at)) {
            return CodeKind::Kernel;
        }
        self.modules.iter().find(|module| module.holds(at)).map_or(CodeKind::Unknown, CodeKind::Module)
    }

    /// How to walk on from an instruction at `at`.
    pub(super) fn orc(&self, at: Gva) -> Result<OrcEntry, String> {
        let entry = match self.kind(at) {
            CodeKind::Kernel => self.kernel.model().image().orc().entry(self.kernel.linked(at)),
            CodeKind::Module(module) => match &module.orc {
                Ok(orc) => orc.entry(at),
                Err(why) => return Err(format!("the unwind table of module {}: {why}", module.name)),
            },
            CodeKind::Unknown => return Err("code of nobody that is known".to_owned()),
        };
        entry.ok_or_else(|| "no entry in the unwind table".to_owned())
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
