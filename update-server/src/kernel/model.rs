//! What is the same for every guest that runs one kernel image: where its parts are linked, and how its structures lie.

use super::layout::Layout;
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
    /// Where the stacks for exceptions are in the area for all of them: offset and length of each.
    pub(crate) exception_stacks: Vec<(u64, u64)>,
    /// The table of probes, and the offset of a probe's address in it.
    pub(crate) probes: Option<(Gva, u64)>,
}

/// Symbols that are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) init_task: Gva,
    pub(crate) modules: Gva,
    pub(crate) per_cpu_offset: Gva,
    pub(crate) cpu_ids: Gva,
    /// Per-CPU.
    pub(crate) run_queues: u64,
    /// Per-CPU.
    pub(crate) exception_stacks: u64,
    /// Where a new task begins: what its stack returns to before it has ever run.
    pub(crate) fork_return: Gva,
}

impl Model {
    /// Finds everything in `image`, or the first thing that is missing.
    pub fn new(image: Image) -> Result<Self, ModelError> {
        let layout = Layout::of(image.types())?;
        let one = |name: &'static str| {
            image.symbols().only(name).map(|symbol| symbol.address).ok_or(ModelError::Symbol(name))
        };
        // A member of `pcpu_hot` since 6.2, a variable of its own before.
        let hot = |member: &str, variable: &'static str| match image.types().field("pcpu_hot", member) {
            Ok(field) => one("pcpu_hot").map(|at| at.0 + field.offset()),
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
        let symbols = Places {
            init_task: one("init_task")?,
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
        let exception_stacks = exception_stacks.into_iter().collect::<Result<_, TypeError>>()?;
        let probes = one("kprobe_table").ok().zip(image.types().field("kprobe", "addr").ok());
        let probes = probes.map(|(table, address)| (table, address.offset()));
        Ok(Self { image, layout, symbols, stack_bytes, current, interrupt_stack, exception_stacks, probes })
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }
}
