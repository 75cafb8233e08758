//! What is the same for every guest that runs one kernel image: where its parts are linked, and how its structures lie.

use super::bpf::BpfLayout;
use super::hooks::Hooks;
use super::layout::Layout;
use super::livepatches::LivepatchLayout;
use super::module_sites::ModuleTables;
use super::probe_owners::OwnerLayout;
use super::probes::ProbeLayout;
use super::text_locks::{Unclear, text_locks};
use super::trampolines::TrampolineLayout;
use crate::addr::Gva;
use crate::image::{Image, TypeError};

/// Why a kernel cannot be looked into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A structure or member is not there.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A symbol is not there, or there are several of its name.
    #[error("the kernel has no one symbol `{0}`")]
    Symbol(&'static str),
    /// The kernel stack has no size that a stack could have.
    #[error("the kernel's first stack has {0:#x} bytes, which is no power of two of pages")]
    StackSize(u64),
}

/// An image, and where to look in a guest that runs it. All addresses are those it was linked for.
#[derive(Debug)]
pub struct Model {
    image: Image,
    pub(crate) layout: Layout,
    pub(crate) symbols: Places,
    /// Bytes of a kernel stack, and their alignment.
    pub(crate) stack_bytes: u64,
    /// Offset of `current` in each per-CPU area.
    pub(crate) current: u64,
    /// Offset there of the pointer to the top of the stack for interrupts.
    pub(crate) interrupt_stack: u64,
    /// Where the stacks for exceptions, and for entering the kernel, are from the start of the area for the former: offset
    /// and length of each.
    pub(crate) exception_stacks: Vec<(u64, u64)>,
    pub(crate) probes: Option<ProbeLayout>,
    pub(crate) probe_owners: Option<OwnerLayout>,
    pub(crate) bpf: Option<BpfLayout>,
    pub(crate) hooks: Hooks,
    pub(crate) trampolines: Option<TrampolineLayout>,
    pub(crate) module_tables: ModuleTables,
    pub(crate) livepatches: Option<LivepatchLayout>,
    text_locks: Result<Vec<Gva>, Unclear>,
}

/// Symbols that are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// Where SYSCALL enters the kernel.
    pub(crate) entry: Gva,
    pub(crate) init_task: Gva,
    /// The kernel's own topmost page table.
    pub(crate) own_tables: Gva,
    /// How many tasks were ever made, and how many there are.
    pub(crate) total_forks: Gva,
    pub(crate) threads: Gva,
    /// Who has it may change the lists that tasks are on.
    pub(crate) tasks_lock: Gva,
    pub(crate) modules: Gva,
    pub(crate) per_cpu_offset: Gva,
    pub(crate) cpu_ids: Gva,
    /// Per-CPU.
    pub(crate) run_queues: u64,
    /// Per-CPU.
    pub(crate) exception_stacks: u64,
    /// Where a new task begins: what its stack returns to before it has ever run.
    pub(crate) fork_return: Gva,
    /// What exceptions call to save the registers.
    pub(crate) saving: [Option<Gva>; 2],
    /// Where other processors than the first enter the kernel: the function and its end. It pushes the address that their
    /// idle tasks' stacks end with, rather than calling.
    pub(crate) secondary_start: (Gva, Gva),
}

impl Model {
    /// Finds everything in `image`, or the first thing that is missing.
    pub fn new(image: Image) -> Result<Self, ModelError> {
        let layout = Layout::of(image.types())?;
        let one = |name: &'static str| {
            image.symbols().only(name).map(|symbol| symbol.address).ok_or(ModelError::Symbol(name))
        };
        // A member of `pcpu_hot` since 6.2, a variable of its own before.
        let hot = |member: &str, variable: &'static str| match image.types().offset("pcpu_hot", member) {
            Ok(offset) => one("pcpu_hot").map(|at| at.0 + offset),
            Err(_) => one(variable).map(|at| at.0),
        };
        let (start, end) = match (one("__start_init_stack"), one("__end_init_stack")) {
            (Ok(start), Ok(end)) => (start, end),
            _ => (one("__start_init_task")?, one("__end_init_task")?),
        };
        let stack_bytes = end.0.wrapping_sub(start.0);
        if !stack_bytes.is_power_of_two() || !(0x1000..=0x10_0000).contains(&stack_bytes) {
            return Err(ModelError::StackSize(stack_bytes));
        }
        let secondary = one("secondary_startup_64")?;
        let secondary_end = image
            .symbols()
            .iter()
            .find(|symbol| symbol.address > secondary && !symbol.name.starts_with("secondary_startup_64"))
            .map_or(secondary, |symbol| symbol.address);
        let symbols = Places {
            secondary_start: (secondary, secondary_end),
            saving: ["error_entry", "paranoid_entry"].map(|name| one(name).ok()),
            entry: one("entry_SYSCALL_64")?,
            init_task: one("init_task")?,
            own_tables: one("init_top_pgt")?,
            total_forks: one("total_forks")?,
            threads: one("nr_threads")?,
            tasks_lock: one("tasklist_lock")?,
            modules: one("modules")?,
            per_cpu_offset: one("__per_cpu_offset")?,
            cpu_ids: one("nr_cpu_ids")?,
            run_queues: one("runqueues")?.0,
            exception_stacks: one("cea_exception_stacks")?.0,
            fork_return: one("ret_from_fork_asm").or_else(|_| one("ret_from_fork"))?,
        };
        let current = hot("current_task", "current_task")?;
        let interrupt_stack = hot("hardirq_stack_ptr", "hardirq_stack_ptr")?;
        let exception_stacks = ["DF", "NMI", "DB", "MCE", "VC", "VC2"].map(|name| {
            let field = image.types().field("cea_exception_stacks", &format!("{name}_stack"))?;
            Ok((field.offset(), field.size()))
        });
        let mut exception_stacks = exception_stacks.into_iter().collect::<Result<Vec<_>, TypeError>>()?;
        // The small stack that a processor enters the kernel on lies before them in the same area.
        let area = |member| image.types().field("cpu_entry_area", member);
        let entry = area("entry_stack_page")?;
        let before = entry.offset().wrapping_sub(area("estacks")?.offset());
        exception_stacks.push((before, entry.size()));
        let find = |name: &str| image.symbols().only(name).map(|symbol| symbol.address);
        let hooks = Hooks::of(image.types(), find);
        let trampolines = TrampolineLayout::of(image.types(), find);
        let probes = ProbeLayout::of(image.types(), find);
        let probe_owners = OwnerLayout::of(image.types(), find);
        let bpf = BpfLayout::of(image.types(), find);
        let module_tables = ModuleTables::of(image.types());
        let livepatches = LivepatchLayout::of(image.types(), find);
        let text_locks = text_locks(image.symbols(), probes.is_some(), livepatches.is_some());
        Ok(Self {
            image,
            layout,
            symbols,
            stack_bytes,
            current,
            interrupt_stack,
            exception_stacks,
            probes,
            probe_owners,
            bpf,
            hooks,
            trampolines,
            module_tables,
            livepatches,
            text_locks,
        })
    }

    /// The locks of those who change the kernel's text. Without them nothing is written, but all the rest can be looked at.
    pub fn text_locks(&self) -> Result<&[Gva], Unclear> {
        self.text_locks.as_deref().map_err(|unclear| *unclear)
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }
}
