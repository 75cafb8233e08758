//! One run of one kernel in a guest, from its start until another one takes its place.
//!
//! What is known of a kernel, or was changed in it, is void after a reboot, a kexec or a kdump, even if the same image was
//! started again at the same place.

use super::locate::{NotFound, Place, witnesses};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::image::BuildId;

/// Where the kernel and its modules are mapped (`Documentation/arch/x86/x86_64/mm.rst`). Interrupt tables that are used only
/// while a processor starts are part of the image; the final one is not.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// What tells one run from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Where it is.
    pub place: Place,
    /// Where SYSCALL enters it.
    pub lstar: Gva,
    /// Its table of interrupts.
    pub idt: Gva,
    /// Which kernel it is.
    pub build_id: BuildId,
    /// A random number that it has made up while it started: the stack canary of its first task, which is set once
    /// (`boot_init_stack_canary`, `arch/x86/include/asm/stackprotector.h`; 6.1 and 6.12).
    pub canary: u64,
}

impl Generation {
    /// That of a kernel in a guest that stands still, with these vCPUs.
    ///
    /// A kernel has one from the moment on when it has set up its interrupts and its canary (`start_kernel`); what there is
    /// to be looked at before is not yet in its final place anyway.
    pub fn of(kernel: &Running<'_, impl Memory>, vcpus: &[Vcpu]) -> Result<Self, NotFound> {
        let unreadable = |source| NotFound::Unreadable { what: "stack canary", source };
        let canary = canary(kernel).map_err(unreadable)?;
        if canary == 0 {
            return Err(NotFound::Starting);
        }
        Ok(Self {
            place: kernel.place(),
            lstar: kernel.entry(),
            idt: interrupt_table(vcpus)?,
            build_id: kernel.model().image().build_id().clone(),
            canary,
        })
    }

    /// Whether it is what runs in a guest that stands still, with these vCPUs; `kernel` is the one at its place. Another one would
    /// not have made up the same canary.
    pub fn runs(&self, kernel: &Running<'_, impl Memory>, vcpus: &[Vcpu]) -> bool {
        let is_run_by = |vcpu: &Vcpu| Gva(vcpu.lstar) == self.lstar && kernel.is_run_by(vcpu);
        let mut witnesses = witnesses(vcpus);
        kernel.place() == self.place
            && interrupt_table(vcpus) == Ok(self.idt)
            && witnesses.all(is_run_by)
            && canary(kernel) == Ok(self.canary)
    }

    /// What is different in another one, in words; nothing if it is the same.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        let table = [
            ("build-id", self.build_id != other.build_id),
            ("place", self.place != other.place),
            ("system call entry", self.lstar != other.lstar),
            ("interrupt table", self.idt != other.idt),
            ("stack canary", self.canary != other.canary),
        ];
        table.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what)
    }
}

/// The stack canary of the first task.
fn canary(kernel: &Running<'_, impl Memory>) -> Result<u64, ReadError> {
    let model = kernel.model();
    let first = kernel.now(model.symbols.init_task);
    kernel.space().u64(first.wrapping_add(model.layout.task.stack_canary))
}

/// The table that all vCPUs have whose start is done.
fn interrupt_table(vcpus: &[Vcpu]) -> Result<Gva, NotFound> {
    // A processor that is brought up has none at first, and one that goes over to another kernel has none any more.
    let mut done = witnesses(vcpus).filter(|vcpu| vcpu.idt_base != 0 && vcpu.idt_base < KERNEL_MAP);
    let first = done.next().ok_or(NotFound::Starting)?;
    match done.find(|vcpu| vcpu.idt_base != first.idt_base) {
        Some(other) => {
            let (found, expected) = (Gva(other.idt_base), Gva(first.idt_base));
            let why =
                format!("its interrupt table is at {found}, and that of vCPU {} at {expected}", first.id);
            Err(NotFound::Elsewhere { vcpu: other.id, why })
        }
        None => Ok(Gva(first.idt_base)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(id: u32, idt_base: u64) -> Vcpu {
        Vcpu { id, started: true, cr0: 1 << 31, lstar: 1, idt_base, ..Vcpu::default() }
    }

    #[test]
    fn interrupt_tables_of_the_start_do_not_count() {
        const OWN: u64 = 0xffff_fe00_0000_0000;
        let early = KERNEL_MAP + 0x200_0000;
        let table = |idts: &[u64]| {
            let vcpus: Vec<Vcpu> = idts.iter().zip(0..).map(|(&idt, id)| vcpu(id, idt)).collect();
            interrupt_table(&vcpus)
        };
        assert_eq!(table(&[0, early]), Err(NotFound::Starting));
        assert_eq!(table(&[early, OWN, 0, OWN]), Ok(Gva(OWN)));
        assert!(matches!(table(&[OWN, OWN, OWN + 0x1000]), Err(NotFound::Elsewhere { vcpu: 2, .. })));
    }
}
