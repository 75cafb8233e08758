//! What was found in the guest's kernel, as the control API tells it.

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
    let name = |frame: &Frame| code.name(frame.address, frame.behind_call);
    let info = |holder: &Holder| {
        let stack = census.stacks().find(|stack| stack.task.address == holder.task.address);
        HolderInfo {
            pid: holder.task.pid,
            comm: holder.task.comm.clone(),
            function: holder.function.clone(),
            for_ms: 0,
            stack: stack.map(|stack| stack.frames.iter().map(name).collect()).unwrap_or_default(),
        }
    };
    holders.iter().map(info).collect()
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
