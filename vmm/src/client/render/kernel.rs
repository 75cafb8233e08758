//! The guest's kernel for people.

use std::fmt::Write;

use super::duration;
use crate::control::model::{
    FrameInfo, ModuleInfo, ModuleReport, StackReport, SymbolReport, TaskInfo, TaskReport, TextReport,
};

pub(super) fn stacks(report: &StackReport) -> String {
    let complete = report.stacks.iter().filter(|stack| stack.complete).count();
    let mut text = format!(
        "{}: {} stacks, {complete} of them proven to be complete{}\n",
        report.kernel,
        report.stacks.len(),
        pause(report.paused_us)
    );
    doubts(&mut text, &report.doubts);
    for stack in &report.stacks {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", title(&stack.task));
        for FrameInfo { name, .. } in &stack.frames {
            let _ = writeln!(text, "    {name}");
        }
        match &stack.doubt {
            Some(doubt) => {
                let _ = writeln!(text, "    ? {doubt}");
            }
            None if stack.frames.is_empty() => {
                let place = if stack.task.vcpu.is_some() { "in user space" } else { "no stack any more" };
                let _ = writeln!(text, "    ({place})");
            }
            None => {}
        }
    }
    text
}

pub(super) fn tasks(report: &TaskReport) -> String {
    let mut text = format!("{}: {} tasks{}\n", report.kernel, report.tasks.len(), pause(report.paused_us));
    doubts(&mut text, &report.doubts);
    for task in &report.tasks {
        let _ = writeln!(text, "{}", title(task));
    }
    text
}

pub(super) fn symbols(report: &SymbolReport) -> String {
    if report.symbols.is_empty() {
        return format!("{} and its modules have no such symbol\n", report.kernel);
    }
    let mut text = String::new();
    for symbol in &report.symbols {
        let module = symbol.module.as_ref().map(|module| format!(" [{module}]")).unwrap_or_default();
        let address = symbol.address.trim_start_matches("0x");
        let _ = writeln!(text, "{address:0>16} {} {}{module}", symbol.kind, symbol.name);
    }
    text
}

pub(super) fn modules(report: &ModuleReport) -> String {
    if report.modules.is_empty() && report.doubts.is_empty() {
        return format!("{} has no such module\n", report.kernel);
    }
    let mut text =
        format!("{}: {} modules{}\n", report.kernel, report.modules.len(), pause(report.paused_us));
    doubts(&mut text, &report.doubts);
    let width = report.modules.iter().map(|module| module.name.len()).max().unwrap_or(0);
    for module in &report.modules {
        self::module(&mut text, module, width);
    }
    text
}

fn module(text: &mut String, module: &ModuleInfo, width: usize) {
    let ModuleInfo { name, state, symbols, orc, .. } = module;
    let (address, kib) = (module.text.address.trim_start_matches("0x"), module.text.bytes.div_ceil(1024));
    let _ = writeln!(
        text,
        "{name:<width$}  {state:<8}  {address:0>16}  {kib:>6} KiB  {symbols:>5} symbols  {orc:>6} unwind entries"
    );
    let mut tables: Vec<String> =
        module.tables.iter().map(|(table, own)| format!("{table} {}", own.sites)).collect();
    if module.gone > 0 {
        tables.push(format!("{} gone with its init function", module.gone));
    }
    if !tables.is_empty() {
        let _ = writeln!(text, "    {}", tables.join(", "));
    }
    for (table, why) in &module.unread {
        let _ = writeln!(text, "    ? {table}: {why}");
    }
    for site in module.sites.iter().flatten() {
        let _ = writeln!(text, "    {} {:>3} {}", site.address, site.bytes, site.table);
    }
}

pub(super) fn text(report: &TextReport) -> String {
    let mut text =
        format!("{}: {} bytes of text compared{}\n", report.kernel, report.bytes, pause(report.paused_us));
    let width = report.explained.keys().map(String::len).max().unwrap_or(0);
    for (table, share) in &report.explained {
        let _ = writeln!(text, "  {table:<width$}  {:>7} sites  {:>8} bytes", share.sites, share.bytes);
    }
    if report.unexplained.is_empty() {
        text.push_str("every byte that differs is in one of these\n");
        return text;
    }
    let more = if report.cut { ", of which these are the first" } else { "" };
    let _ = writeln!(text, "differing for no known reason{more}:");
    for place in &report.unexplained {
        let _ = writeln!(text, "  {}: {} instead of {}", place.name, place.found, place.expected);
    }
    text
}

fn title(task: &TaskInfo) -> String {
    let mut text = format!("{:>7} {} {}", task.pid, task.state, task.comm);
    if task.tgid != task.pid {
        let _ = write!(text, ", of process {}", task.tgid);
    }
    if let Some(cpu) = task.idle_of {
        let _ = write!(text, ", idle task of CPU {cpu}");
    }
    if let Some(vcpu) = task.vcpu {
        let _ = write!(text, ", on vCPU {vcpu}");
    }
    if !task.has_run {
        text.push_str(", has never run");
    }
    text
}

fn pause(us: u64) -> String {
    if us == 0 { String::new() } else { format!("; the guest stood still for {}", duration(us)) }
}

fn doubts(text: &mut String, doubts: &[String]) {
    for doubt in doubts {
        let _ = writeln!(text, "? {doubt}");
    }
}
