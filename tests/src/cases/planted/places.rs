//! What each place looks like.

/// A kernel with its own names for what is the same in all.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As images are called.
    pub(super) kind: &'static str,
    /// The outermost frames of a kernel thread.
    thread: &'static str,
    /// The outermost frame of an idle task.
    idle: &'static str,
    /// Whether softirqs have a thread even if they were raised in an interrupt.
    threaded_softirqs: bool,
}

/// One place with the stacks in it.
#[derive(Debug)]
pub(super) struct Plant {
    /// As the module knows it.
    pub(super) place: &'static str,
    /// The name of those who are in it.
    pub(super) comm: &'static str,
    /// How many are in it.
    pub(super) count: usize,
    /// What is on the stack of each (`super::pattern`).
    pub(super) frames: String,
    /// Whether the guest lies about the place: the frames are those up to the lie then.
    pub(super) forged: bool,
    /// Whether those in it have left the list of tasks.
    pub(super) off_the_list: bool,
}

pub(super) const V6_1_CLOUD: Kernel = Kernel {
    kind: "6.1-cloud",
    thread: "kthread < ret_from_fork",
    idle: "secondary_startup_64_no_verify",
    threaded_softirqs: false,
};
pub(super) const V6_12_CLOUD: Kernel = Kernel {
    kind: "6.12-cloud",
    thread: "kthread < ret_from_fork < ret_from_fork_asm",
    idle: "common_startup_64",
    threaded_softirqs: false,
};
pub(super) const V6_1_RT: Kernel = Kernel { kind: "6.1-rt", threaded_softirqs: true, ..V6_1_CLOUD };

/// The way of the timer's interrupt into the kernel.
const TIMER: &str = "sysvec_apic_timer_interrupt < asm_sysvec_apic_timer_interrupt";
/// The way of threads to sleep in the module.
const ASLEEP: &str = "__schedule < schedule < plant_sleep";

impl Plant {
    fn new(place: &'static str, comm: &'static str, frames: String) -> Self {
        Self { place, comm, count: 1, frames, forged: false, off_the_list: false }
    }

    /// Interrupts are on there, and one may have come.
    fn interruptible(self) -> Self {
        Self { frames: format!(".. < {}", self.frames), ..self }
    }

    /// Two threads on one processor: one runs, the other was interrupted and waits for its turn.
    fn two(self) -> Self {
        Self { count: 2, ..self.interruptible() }
    }
}

impl Kernel {
    /// The places that the module knows.
    pub(super) fn plants(&self) -> Vec<Plant> {
        [self.of_a_processor(), self.of_threads(), self.of_probes(), forged()].into_iter().flatten().collect()
    }

    /// A processor that is switched off.
    pub(super) fn offline(&self) -> Plant {
        Plant::new("offline", "swapper/2", self.idle())
    }

    /// An idle task, wherever it is.
    fn idle(&self) -> String {
        format!(".. < do_idle < cpu_startup_entry < start_secondary < {}", self.idle)
    }

    fn of_a_processor(&self) -> Vec<Plant> {
        let idle = self.idle();
        let in_irq =
            format!("plant_in_irq < __hrtimer_run_queues < hrtimer_interrupt < .. < {TIMER} < {idle}");
        let (comm, below) = if self.threaded_softirqs {
            ("ksoftirqd/3", format!("run_ksoftirqd < smpboot_thread_fn < {}", self.thread))
        } else {
            ("swapper/3", format!("{TIMER} < {idle}"))
        };
        let in_softirq =
            format!("plant_in_softirq < tasklet_action_common < .. < handle_softirqs < .. < {below}");
        let in_nmi =
            format!("plant_in_nmi < nmi_handle < default_do_nmi < exc_nmi < end_repeat_nmi < {idle}");
        vec![
            Plant::new("irq", "swapper/3", in_irq),
            Plant::new("softirq", comm, in_softirq).interruptible(),
            Plant::new("nmi", "swapper/3", in_nmi),
        ]
    }

    fn of_threads(&self) -> Vec<Plant> {
        let thread = self.thread;
        let in_prologue = format!("plant_in_prologue < plant_in_turns < {thread}");
        let in_module = format!("{ASLEEP} < plant_inner < plant_outer < plant_sleeper < {thread}");
        let in_exit = format!("plant_in_exit < do_exit < kthread_exit < {thread}");
        vec![
            Plant::new("prologue", "plant_prologue", in_prologue).two(),
            Plant::new("module", "plant_module", in_module),
            Plant { off_the_list: true, ..Plant::new("exiting", "plant_exiting", in_exit).two() },
        ]
    }

    /// The same place, reached by a breakpoint, and by a jump to code that the optimizer has made.
    fn of_probes(&self) -> Vec<Plant> {
        let below = format!("plant_probed < plant_probed_thread < {}", self.thread);
        let by_int3 =
            format!("plant_in_probe < .. < kprobe_int3_handler < .. < exc_int3 < asm_exc_int3 < {below}");
        let by_jump = format!("plant_in_probe < opt_pre_handler < optimized_callback < {below}");
        vec![
            Plant::new("kprobe", "plant_kprobe", by_int3),
            Plant::new("optprobe", "plant_optprobe", by_jump).interruptible(),
        ]
    }
}

fn forged() -> Vec<Plant> {
    let functions = [
        ("forged-offset", "plant_forged_offset"),
        ("forged-end", "plant_forged_end"),
        ("forged-leap", "plant_forged_leap"),
    ];
    let plant = |(place, function)| Plant {
        forged: true,
        ..Plant::new(place, "plant_forged", format!("{ASLEEP} < {function}"))
    };
    functions.map(plant).into()
}
