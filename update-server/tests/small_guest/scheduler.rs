//! The other vCPUs of a guest that does not lie: they switch tasks, start some and end some, a word at a time and in the
//! order in which the kernel writes (`kernel/sched/core.c`: `__schedule`, `context_switch`, `finish_task`; `kernel/fork.c`:
//! `copy_process`; `kernel/exit.c`: `__unhash_process`; 6.1 and 6.12).

use std::collections::{HashMap, VecDeque};

use update_server::addr::Gva;
use update_server::guest::Vcpu;

use super::plan::{CPUS, Plan, physical};
use super::{Write, random};

/// One of the things that a processor does.
#[derive(Debug)]
enum Act {
    Write(Gva, u64),
    /// It can be stopped here: in user space, or in its idle task.
    Rest {
        in_user: bool,
    },
}

#[derive(Debug, Default)]
struct Processor {
    acts: VecDeque<Act>,
    /// The task that it runs, unless that is its idle one.
    task: Option<usize>,
    /// Whether it starts or ends the spare task.
    has_spare: bool,
    in_user: bool,
}

/// All processors, each in the middle of something.
pub(crate) struct Scheduler<'p> {
    plan: &'p Plan,
    state: u64,
    /// What was decided on, which is ahead of what was written.
    words: HashMap<u64, u64>,
    processors: Vec<Processor>,
    /// The last task is not always there.
    spare_is_listed: bool,
    births: u64,
}

impl<'p> Scheduler<'p> {
    pub(crate) fn new(plan: &'p Plan, seed: u64) -> Self {
        let processors = (0..CPUS).map(|_| Processor::default()).collect();
        let words = HashMap::new();
        Self { plan, state: seed, words, processors, spare_is_listed: true, births: 0 }
    }

    /// The next word that one of them writes.
    pub(crate) fn step(&mut self) -> Write {
        loop {
            let cpu = self.choose(self.processors.len());
            if self.processors[cpu].acts.is_empty() {
                self.decide(cpu);
            }
            if let Some(write) = self.act(cpu) {
                return write;
            }
        }
    }

    /// What is written until each of them can be stopped.
    pub(crate) fn rest(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for cpu in 0..self.processors.len() {
            loop {
                let rests = matches!(self.processors[cpu].acts.front(), None | Some(Act::Rest { .. }));
                writes.extend(self.act(cpu));
                if rests {
                    break;
                }
            }
        }
        writes
    }

    /// What vCPUs that have been stopped are like.
    pub(crate) fn vcpus(&self) -> Vec<Vcpu> {
        let vcpu = |(vcpu, processor): (&Vcpu, &Processor)| Vcpu {
            cpl: if processor.in_user { 3 } else { 0 },
            ..vcpu.clone()
        };
        self.plan.vcpus.iter().zip(&self.processors).map(vcpu).collect()
    }

    fn choose(&mut self, count: usize) -> usize {
        usize::try_from(random(&mut self.state) % count as u64).unwrap()
    }

    fn act(&mut self, cpu: usize) -> Option<Write> {
        match self.processors[cpu].acts.pop_front()? {
            Act::Write(at, word) => Some((physical(at), word)),
            Act::Rest { in_user } => {
                self.processors[cpu].in_user = in_user;
                None
            }
        }
    }

    fn word(&self, at: Gva) -> u64 {
        let place = physical(at).0;
        let from = usize::try_from(place).unwrap();
        let planned = || u64::from_le_bytes(self.plan.ram[from..from + 8].try_into().unwrap());
        self.words.get(&place).copied().unwrap_or_else(planned)
    }

    fn set(&mut self, cpu: usize, at: Gva, word: u64) {
        // Whole words only: the one that it is in.
        assert_eq!(at.0 % 8, 0, "{at}");
        self.words.insert(physical(at).0, word);
        self.processors[cpu].acts.push_back(Act::Write(at, word));
    }

    fn set_half(&mut self, cpu: usize, at: Gva, half: u32) {
        let (whole, shift) = (Gva(at.0 & !7), (at.0 & 4) * 8);
        let word = self.word(whole) & !(0xffff_ffff << shift) | u64::from(half) << shift;
        self.set(cpu, whole, word);
    }

    fn half(&self, at: Gva) -> u32 {
        u32::try_from(self.word(Gva(at.0 & !7)) >> ((at.0 & 4) * 8) & 0xffff_ffff).unwrap()
    }

    fn add(&mut self, cpu: usize, at: Gva, change: u64) {
        let word = self.word(at).wrapping_add(change);
        self.set(cpu, at, word);
    }

    /// One processor runs a task for a while, from its idle one and back.
    fn decide(&mut self, cpu: usize) {
        let idle = usize::try_from(CPUS).unwrap();
        let spare = self.plan.tasks.len() - 1;
        (self.processors[cpu].task, self.processors[cpu].has_spare) = (None, false);
        // Nobody has it who is not on the list, or about to leave it or come to it.
        let is_free = self.spare_is_listed && !self.processors.iter().any(|other| other.has_spare);
        let task = idle + self.choose(spare + usize::from(is_free) - idle);
        if self.processors.iter().any(|other| other.task == Some(task)) {
            self.processors[cpu].acts.push_back(Act::Rest { in_user: false });
            return;
        }
        self.processors[cpu].task = Some(task);
        self.switch(cpu, cpu, task);
        self.processors[cpu].acts.push_back(Act::Rest { in_user: true });
        let nobody = self.processors.iter().all(|other| other.task != Some(spare) && !other.has_spare);
        if self.choose(4) == 0 && nobody {
            self.processors[cpu].has_spare = true;
            let before = self.processors[cpu].acts.len();
            self.change_spare(cpu);
            // It may be stopped in the middle of that; as what it is stopped in is in the kernel, on a stack that is not
            // looked at here, it is said to be in user space.
            let acts = self.processors[cpu].acts.split_off(before);
            let rest = || Act::Rest { in_user: true };
            self.processors[cpu].acts.extend(acts.into_iter().flat_map(|act| [act, rest()]));
        }
        let pointer = self.plan.stacks[task].wrapping_add(0x1000 + 0x100 * self.choose(0x18) as u64);
        self.fill_stack(cpu, pointer);
        let sleeping = self.plan.tasks[task].wrapping_add(self.plan.layout.state);
        self.set_half(cpu, sleeping, 1);
        self.switch_with_pointer(cpu, task, cpu, Some(pointer));
        // The task is free for others once all that was written: this is not asked before.
        self.processors[cpu].acts.push_back(Act::Rest { in_user: false });
    }

    fn switch(&mut self, cpu: usize, from: usize, to: usize) {
        self.switch_with_pointer(cpu, from, to, None);
    }

    /// From one task to another, the first one's stack pointer being saved meanwhile.
    fn switch_with_pointer(&mut self, cpu: usize, from: usize, to: usize, pointer: Option<Gva>) {
        let layout = &self.plan.layout;
        let (area, from, to) = (self.plan.areas[cpu], self.plan.tasks[from], self.plan.tasks[to]);
        let queue = area.wrapping_add(layout.queue);
        self.set_half(cpu, queue.wrapping_add(layout.lock), 1);
        self.add(cpu, queue.wrapping_add(layout.queue_switches), 1);
        self.set(cpu, queue.wrapping_add(layout.queue_current), to.0);
        let involuntary = self.choose(2) == 0;
        let count = if involuntary { layout.involuntary } else { layout.voluntary };
        self.add(cpu, from.wrapping_add(count), 1);
        self.set_half(cpu, to.wrapping_add(layout.on_cpu), 1);
        if let Some(pointer) = pointer {
            self.set(cpu, from.wrapping_add(layout.pointer), pointer.0);
        }
        self.set(cpu, area.wrapping_add(layout.current), to.0);
        self.set_half(cpu, from.wrapping_add(layout.on_cpu), 0);
        self.set_half(cpu, queue.wrapping_add(layout.lock), 0);
    }

    /// What a task that is about to sleep leaves from `pointer` on.
    fn fill_stack(&mut self, cpu: usize, pointer: Gva) {
        let (seed, frames) = (self.choose(1000), 2 + self.choose(6));
        let (first, words) = self.plan.returns.stack(frames, seed);
        self.set(cpu, pointer.wrapping_add(self.plan.layout.frame_return), first.0);
        let above = pointer.wrapping_add(self.plan.layout.frame);
        for (offset, word) in words {
            self.set(cpu, above.wrapping_add(offset), word.0);
        }
    }

    /// Ends the spare task, or starts it as another one at the same place.
    fn change_spare(&mut self, cpu: usize) {
        let layout = &self.plan.layout;
        let spare = self.plan.tasks.len() - 1;
        let (own, init) = (self.plan.tasks[spare], self.plan.tasks[0]);
        let (links, head) = (own.wrapping_add(layout.links), init.wrapping_add(layout.links));
        let threads = layout.threads;
        self.set_half(cpu, layout.lists_lock, layout.write_locked);
        if self.spare_is_listed {
            let count = self.half(threads) - 1;
            self.set_half(cpu, threads, count);
            let (next, before) = (Gva(self.word(links)), Gva(self.word(links.wrapping_add(8))));
            self.set(cpu, next.wrapping_add(8), before.0);
            self.set(cpu, before, next.0);
        } else {
            self.births += 1;
            self.set(cpu, own.wrapping_add(layout.voluntary), 0);
            self.set(cpu, own.wrapping_add(layout.involuntary), 0);
            let pointer = self.plan.stacks[spare].wrapping_add(0x3000);
            self.set(cpu, own.wrapping_add(layout.pointer), pointer.0);
            self.fill_stack(cpu, pointer);
            // Last of all, so that whoever has seen it has seen the stack (`copy_process`, behind `copy_thread`).
            self.set(cpu, own.wrapping_add(layout.started), 1_000_000 + self.births);
            let last = Gva(self.word(head.wrapping_add(8)));
            self.set(cpu, links, head.0);
            self.set(cpu, links.wrapping_add(8), last.0);
            self.set(cpu, last, links.0);
            self.set(cpu, head.wrapping_add(8), links.0);
            let count = self.half(threads) + 1;
            self.set_half(cpu, threads, count);
            self.add(cpu, layout.forks, 1);
        }
        self.set_half(cpu, layout.lists_lock, layout.unlocked);
        self.spare_is_listed = !self.spare_is_listed;
    }
}
