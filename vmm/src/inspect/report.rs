//! What was found in the guest's kernel, as the control API tells it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use update_server::addr::Gva;
use update_server::census;
use update_server::census::{Census, Code, Found, Frame, Loaded, Outcome, Stack, Task};
use update_server::guest::Memory;
use update_server::image::Symbol;
use update_server::kernel::modules::Module;
use update_server::kernel::running::Running;
use update_server::phases::stack_check::Holder;
use update_server::text_check;

use crate::control::model::{
    Difference, Effort, FrameInfo, HolderInfo, StackInfo, StackReport, SymbolInfo, SymbolReport, TaskInfo,
    TaskReport, TextReport, TextShare,
};

/// Holders that are described: nobody reads more, and all tasks of a guest may sleep in a function that is patched.
const HOLDERS: usize = 64;
/// Frames of each that are: a system call has some 10 to 50, and the 16 KiB of a stack that somebody has made up have 2,000.
const FRAMES: usize = 64;

pub(super) fn stacks<M: Memory>(kernel: &Running<'_, M>, census: &Census) -> StackReport {
    let code = Code::new(kernel, &census.loaded);
    StackReport {
        kernel: release(kernel),
        generation: 0,
        stacks: census.stacks().map(|stack| self::stack(&code, stack)).collect(),
        doubts: census.doubts.iter().map(ToString::to_string).collect(),
        effort: effort(census),
        paused_us: 0,
    }
}

pub(super) fn holders<M: Memory>(
    kernel: &Running<'_, M>,
    census: &Census,
    holders: &[Holder],
) -> Vec<HolderInfo> {
    let code = Code::new(kernel, &census.loaded);
    described(holders, census.stacks(), |frame| code.name(frame.address, frame.behind_call))
}

/// The first of `holders`, with what `stacks` has of theirs. Of one task's frames each has the same list.
fn described<'c>(
    holders: &[Holder],
    stacks: impl Iterator<Item = &'c Arc<Stack>>,
    name: impl Fn(&Frame) -> String,
) -> Vec<HolderInfo> {
    let holders = || holders.iter().take(HOLDERS);
    let wanted: HashSet<Gva> = holders().map(|holder| holder.task.address).collect();
    let named = |stack: &Arc<Stack>| {
        let names: Arc<[String]> = stack.frames.iter().take(FRAMES).map(&name).collect();
        (stack.task.address, (names, stack.frames.len().saturating_sub(FRAMES) as u64))
    };
    let stacks = stacks.filter(|stack| wanted.contains(&stack.task.address));
    let stacks: HashMap<Gva, (Arc<[String]>, u64)> = stacks.map(named).collect();
    let info = |holder: &Holder| {
        let (stack, more_frames) = stacks.get(&holder.task.address).cloned().unwrap_or_default();
        let Task { pid, comm, .. } = &*holder.task;
        let function = holder.function.to_string();
        HolderInfo { pid: *pid, comm: comm.clone(), function, for_ms: 0, stack, more_frames }
    };
    holders().map(info).collect()
}

pub(super) fn tasks<M: Memory>(kernel: &Running<'_, M>, census: &Census) -> TaskReport {
    let doubts = census.doubts.iter().map(ToString::to_string).collect();
    let tasks = census.stacks().map(|stack| task(&stack.task, stack.found)).collect();
    TaskReport { kernel: release(kernel), generation: 0, tasks, doubts, effort: effort(census), paused_us: 0 }
}

pub(super) fn symbols<M: Memory>(
    kernel: &Running<'_, M>,
    loaded: &Loaded,
    filter: Option<&str>,
) -> SymbolReport {
    let address = filter.and_then(|filter| u64::from_str_radix(filter.strip_prefix("0x")?, 16).ok()).map(Gva);
    let own = kernel.model().image().symbols();
    let mut found = Vec::new();
    let info = |at: Gva, kind: char, name: &str, module: Option<&Module>| SymbolInfo {
        address: at.to_string(),
        kind: kind.to_string(),
        name: name.to_owned(),
        module: module.map(|module| module.name.clone()),
    };
    if let Some(at) = address {
        let module = loaded.modules.iter().find(|module| module.holds(at)).map(Arc::as_ref);
        let symbol = match module {
            Some(module) => module.symbols.containing(at),
            None => own.containing(kernel.linked(at)),
        };
        if let Some((symbol, offset)) = symbol {
            found.push(info(Gva(at.0 - offset), symbol.kind, symbol.name, module));
        }
    } else {
        let tables = loaded.modules.iter().map(|module| (&module.symbols, Some(module.as_ref())));
        for (table, module) in std::iter::once((own, None)).chain(tables) {
            let mut add = |symbol: Symbol<'_>| {
                let at = if module.is_some() { symbol.address } else { kernel.symbol_now(&symbol) };
                found.push(info(at, symbol.kind, symbol.name, module));
            };
            match filter {
                Some(name) => table.named(name).for_each(&mut add),
                None => table.iter().for_each(&mut add),
            }
        }
    }
    SymbolReport {
        kernel: release(kernel),
        generation: 0,
        build_id: kernel.model().image().build_id().to_string(),
        moved_by: format!("{:#x}", kernel.place().distance),
        symbols: found,
    }
}

pub(super) fn text<M: Memory>(kernel: &Running<'_, M>, report: &text_check::TextReport) -> TextReport {
    let nothing = Loaded::default();
    let code = Code::new(kernel, &nothing);
    let share = |share: text_check::Share| TextShare { sites: share.sites, bytes: share.bytes };
    let tables = report.by_table.iter().map(|(kind, own)| (kind.table().to_owned(), share(*own)));
    let probes = Some(("kprobes".to_owned(), share(report.by_probe))).filter(|(_, own)| own.bytes > 0);
    let patches = Some(("patches".to_owned(), share(report.by_patch))).filter(|(_, own)| own.bytes > 0);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let difference = |place: &text_check::Unexplained| Difference {
        address: place.at.to_string(),
        name: code.name(place.at, false),
        found: hex(&place.found),
        expected: hex(&place.expected),
    };
    TextReport {
        kernel: release(kernel),
        generation: 0,
        bytes: report.bytes,
        explained: tables.chain(probes).chain(patches).collect(),
        unexplained: report.unexplained.iter().map(difference).collect(),
        cut: report.cut,
        paused_us: 0,
    }
}

fn effort(census: &Census) -> Effort {
    let census::Effort { rounds, proven, checked, walked } = census.effort;
    Effort { rounds, proven, checked: checked as u64, walked: walked as u64 }
}

pub(super) fn release<M: Memory>(kernel: &Running<'_, M>) -> String {
    kernel.model().image().release().to_owned()
}

fn stack<M: Memory>(code: &Code<'_, '_, M>, stack: &Stack) -> StackInfo {
    let frame = |frame: &Frame| FrameInfo {
        address: frame.address.to_string(),
        name: code.name(frame.address, frame.behind_call),
        behind_call: frame.behind_call,
    };
    StackInfo {
        task: task(&stack.task, stack.found),
        frames: stack.frames.iter().map(frame).collect(),
        complete: stack.outcome == Outcome::Complete,
        doubt: match &stack.outcome {
            Outcome::Complete => None,
            Outcome::Unprovable(doubt) => Some(doubt.to_string()),
        },
    }
}

fn task(task: &Task, found: Found) -> TaskInfo {
    TaskInfo {
        pid: task.pid,
        tgid: task.tgid,
        comm: task.comm.clone(),
        state: task.activity.letter().to_string(),
        kernel_thread: task.kernel_thread,
        vcpu: match found {
            Found::OnCpu { vcpu } => Some(vcpu),
            Found::SwitchedOut | Found::New => None,
        },
        idle_of: task.idle_of,
        has_run: found != Found::New,
        switches: task.switches,
        started_ns: task.start_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use update_server::census::Activity;
    use update_server::phases::place::Position;

    fn task(number: u32) -> Task {
        Task {
            address: Gva(u64::from(number) << 12),
            stack: Gva(0),
            sp: Gva(0),
            pid: number,
            tgid: number,
            comm: format!("task {number}"),
            kernel_thread: false,
            activity: Activity::Sleeping,
            switches: 1,
            start_time: 1,
            idle_of: None,
        }
    }

    fn stack(number: u32, frames: usize) -> Arc<Stack> {
        let frame = |index| Frame { address: Gva(index as u64), slot: None, behind_call: true, stub: None };
        let frames = (0..frames).map(frame).collect();
        Arc::new(Stack { task: task(number), found: Found::SwitchedOut, frames, outcome: Outcome::Complete })
    }

    fn holder(task: &Arc<Task>) -> Holder {
        Holder {
            task: Arc::clone(task),
            function: "old".into(),
            address: Gva(0),
            slot: None,
            position: Position::Inside,
            leave: None,
        }
    }

    fn name(frame: &Frame) -> String {
        frame.address.0.to_string()
    }

    #[test]
    fn of_a_made_up_stack_the_first_frames_are_named_once() {
        let forger = Arc::new(task(1));
        let holders = vec![holder(&forger); 500];
        let shown = described(&holders, [stack(2, 3), stack(1, 500)].iter(), name);
        assert_eq!(shown.len(), HOLDERS);
        assert_eq!((shown[0].stack.len(), shown[0].more_frames), (FRAMES, 500 - FRAMES as u64));
        assert_eq!((&*shown[0].stack[0], &*shown[0].stack[1]), ("0", "1"));
        assert!(shown.iter().all(|one| Arc::ptr_eq(&one.stack, &shown[0].stack)));
    }

    #[test]
    fn each_holder_has_its_own_tasks_stack() {
        let (one, two, gone) = (Arc::new(task(1)), Arc::new(task(2)), Arc::new(task(3)));
        let holders = [holder(&two), holder(&gone), holder(&one)];
        let shown = described(&holders, [stack(1, 1), stack(2, FRAMES)].iter(), name);
        let found: Vec<_> = shown.iter().map(|one| (&*one.comm, one.stack.len(), one.more_frames)).collect();
        assert_eq!(found, [("task 2", FRAMES, 0), ("task 3", 0, 0), ("task 1", 1, 0)]);
    }
}
