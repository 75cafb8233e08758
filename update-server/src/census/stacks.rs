//! The stacks of a processor, besides those of tasks (Documentation/arch/x86/kernel-stacks.rst).

use std::ops::Range;

use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

/// What a stack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackKind {
    /// A task's own.
    Task,
    /// Interrupts, and what they leave to be done at once.
    Interrupt,
    /// Exceptions that must not trust the stack they meet: NMI, #DB, #MC, #DF, #VC; and the first steps into the kernel.
    Exception,
}

/// `IRQ_STACK_SIZE`, and where in it `hardirq_stack_ptr` points (`arch/x86/kernel/irq_64.c`).
const INTERRUPT_BYTES: u64 = 16 << 10;
const TOP_SLOT: u64 = 8;
/// The segment whose limit holds the processor's number (arch/x86/include/asm/segment.h, `GDT_ENTRY_CPUNODE`), and how
/// many of its bits do.
const CPU_NODE_ENTRY: u64 = 15;
const CPU_BITS: u32 = 12;
/// The bit of a segment's descriptor that says that there is one (Intel SDM vol. 3A, 3.4.5).
const PRESENT: u64 = 1 << 47;

/// One processor of the guest.
#[derive(Debug, Clone)]
pub(super) struct CpuStacks {
    /// Its number in the guest.
    pub(super) cpu: u32,
    /// Its per-CPU area.
    pub(super) area: Gva,
    /// The task it runs, by its own record.
    pub(super) current: Gva,
    /// And by that of its run queue, which is ahead of it while it switches.
    pub(super) queue_current: Gva,
    /// Its idle task.
    pub(super) idle: Gva,
    /// Its run queue.
    pub(super) run_queue: Gva,
    /// Its stacks that are no task's.
    pub(super) ranges: Vec<(StackKind, Range<Gva>)>,
}

impl CpuStacks {
    /// Every processor of the guest.
    pub(super) fn all(kernel: &Running<'_, impl Memory>) -> Result<Vec<Self>, ReadError> {
        let areas = kernel.per_cpu_areas()?;
        let areas = areas.into_iter().enumerate();
        areas.filter_map(|(cpu, area)| area.map(|area| Self::read(kernel, cpu, area))).collect()
    }

    fn read(kernel: &Running<'_, impl Memory>, cpu: usize, area: Gva) -> Result<Self, ReadError> {
        let (space, model) = (kernel.space(), kernel.model());
        let queue = area.wrapping_add(model.symbols.run_queues);
        let layout = &model.layout.run_queue;
        let mut ranges = Vec::new();
        let top = space.pointer(area.wrapping_add(model.interrupt_stack))?;
        if top.0 != 0 {
            let end = top.wrapping_add(TOP_SLOT);
            ranges.push((StackKind::Interrupt, Gva(end.0.wrapping_sub(INTERRUPT_BYTES))..end));
        }
        let exceptions = space.pointer(area.wrapping_add(model.symbols.exception_stacks))?;
        if exceptions.0 != 0 {
            for &(offset, len) in &model.exception_stacks {
                let start = exceptions.wrapping_add(offset);
                ranges.push((StackKind::Exception, start..start.wrapping_add(len)));
            }
        }
        Ok(Self {
            cpu: u32::try_from(cpu).unwrap_or(u32::MAX),
            area,
            current: space.pointer(area.wrapping_add(model.current))?,
            queue_current: space.pointer(queue.wrapping_add(layout.current))?,
            idle: space.pointer(queue.wrapping_add(layout.idle))?,
            run_queue: queue,
            ranges,
        })
    }
}

/// Whether a vCPU is beyond the first steps of a processor that is being brought up: those are below 1 MiB, where no kernel
/// and no firmware that it calls is, and have no stack (`arch/x86/realmode/rm`).
pub(super) fn is_in_kernel(vcpu: &Vcpu) -> bool {
    const PAGING: u64 = 1 << 31;
    let trampoline = vcpu.cpl == 0 && vcpu.rip < 1 << 20;
    vcpu.started && vcpu.cr0 & PAGING != 0 && !trampoline
}

/// Which of the guest's processors a vCPU is.
///
/// GS leads to the per-CPU area in the kernel and is user space's to choose otherwise, NMIs at the wrong moment included; so
/// the number is taken from a table of the kernel's that user space cannot write, and GS must agree. Before a new
/// processor has that table, it has not been to user space, and GS is enough.
pub(super) fn cpu_of<'c>(
    kernel: &Running<'_, impl Memory>,
    vcpu: &Vcpu,
    cpus: &'c [CpuStacks],
) -> Option<&'c CpuStacks> {
    let entry = Gva(vcpu.gdt_base).wrapping_add(CPU_NODE_ENTRY * 8);
    // Descriptor format: Intel SDM vol. 3A, 3.4.5; the limit's low 16 bits come first, its high four are in byte 6.
    let descriptor = kernel.space().u64(entry).ok()?;
    if descriptor & PRESENT == 0 {
        return cpus.iter().find(|cpu| cpu.area.0 == vcpu.gs_base);
    }
    let limit = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
    let number = u32::try_from(limit & ((1 << CPU_BITS) - 1)).ok()?;
    let cpu = cpus.iter().find(|cpu| cpu.cpu == number)?;
    [vcpu.gs_base, vcpu.kernel_gs_base].contains(&cpu.area.0).then_some(cpu)
}
