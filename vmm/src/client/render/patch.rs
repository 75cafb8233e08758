//! Patches for people.

use std::fmt::Write;

use crate::control::model::{HolderInfo, PatchInfo, PatchList, PatchState};

/// Frames of a stack that are shown; the rest is system call entry.
const FRAMES: usize = 8;

/// The most usual bits of a kernel's taint (Documentation/admin-guide/tainted-kernels.rst).
const TAINTS: [(u32, &str); 6] = [
    (4, "a machine check was met"),
    (7, "it has oopsed"),
    (9, "it has warned"),
    (12, "a module from outside its source was loaded"),
    (13, "a module without a trusted signature was loaded"),
    (15, "it has been live-patched by itself"),
];

/// One line: what a patch is doing.
pub(in crate::client) fn progress(patch: &PatchInfo) -> String {
    let why = patch.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("patch {} ({}): {}{why}", patch.id, patch.name, state(patch))
}

fn state(patch: &PatchInfo) -> String {
    let left = |code: &str| {
        let all = patch.holders.len() as u64 + patch.more_holders;
        let threads = match all {
            0 => String::new(),
            1 => format!(", 1 thread in {code} code"),
            threads => format!(", {threads} threads in {code} code"),
        };
        let threads = match u64::from(patch.redirected) {
            0 => threads,
            redirected if redirected >= all => format!("{threads} (redirected)"),
            redirected => format!("{threads} ({redirected} redirected, {} watched)", all - redirected),
        };
        match patch.doubts.len() as u64 + patch.more_doubts {
            0 => threads,
            doubts => format!("{threads}, {doubts} stacks not proven"),
        }
    };
    match patch.state {
        PatchState::Loading => "its module is being loaded".to_owned(),
        PatchState::Applying => "about to be applied".to_owned(),
        PatchState::Draining => format!("closed for new calls{}", left("old")),
        PatchState::Closed => "closed".to_owned(),
        PatchState::RollingBack => "about to be rolled back".to_owned(),
        PatchState::Leaving => format!("rolled back for new calls{}", left("new")),
        PatchState::Removing => "rolled back; its module is being removed".to_owned(),
        PatchState::Resident => "rolled back; its module stays resident".to_owned(),
        PatchState::Removed => "rolled back and removed".to_owned(),
        PatchState::Failed => "not applied".to_owned(),
        PatchState::Gone => "gone".to_owned(),
    }
}

pub(in crate::client) fn list(list: &PatchList) -> String {
    if list.patches.is_empty() {
        return "no patches\n".to_owned();
    }
    let width = list.patches.iter().map(|patch| patch.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for patch in &list.patches {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>3}  {:<width$}  {}", patch.id, patch.name, state(patch));
    }
    text
}

pub(in crate::client) fn status(list: &PatchList) -> String {
    let mut text = String::new();
    let agent = match &list.agent {
        None => "none has shown itself".to_owned(),
        Some(agent) => {
            let obstacle = agent.obstacle.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
            format!("lucos-agent {}, process {}{obstacle}", agent.version, agent.pid)
        }
    };
    let _ = writeln!(text, "agent      {agent}");
    if let Some(taint) = list.taint {
        let known = TAINTS.iter().filter(|(bit, _)| taint >> bit & 1 == 1).map(|(_, what)| *what);
        let known: Vec<&str> = known.collect();
        let what = if known.is_empty() { String::new() } else { format!(": {}", known.join(", ")) };
        let _ = writeln!(text, "taint      {taint}{what}");
    }
    if list.patches.is_empty() {
        text += "no patches\n";
    }
    for patch in &list.patches {
        self::patch(&mut text, patch);
    }
    text
}

fn patch(text: &mut String, patch: &PatchInfo) {
    let _ = writeln!(text, "patch {}    {}: {}", patch.id, patch.name, patch.summary);
    if !patch.fixes.is_empty() {
        let _ = writeln!(text, "fixes      {}", patch.fixes.join(", "));
    }
    let _ = writeln!(text, "replaces   {} ({})", patch.functions.join(", "), patch.consistency);
    let signer = patch.signed_by.as_ref().map_or("nobody".to_owned(), |key| format!("key {key}"));
    let _ = writeln!(text, "signed by  {signer}; brought by the {}", patch.from);
    let _ = writeln!(text, "state      {}, for {}", state(patch), time(patch.for_ms));
    if let Some(why) = &patch.why {
        let _ = writeln!(text, "           {why}");
    }
    if patch.attempts > 0 {
        let paused = super::duration(patch.paused_us);
        let _ = writeln!(text, "tries      {}; the last switch took {paused}", patch.attempts);
    }
    if patch.tombstones > 0 {
        let _ = writeln!(text, "tombstones {} bytes of old code are filled with traps", patch.tombstones);
    }
    for HolderInfo { pid, comm, function, for_ms, stack, more_frames } in &patch.holders {
        let _ = writeln!(text, "  {pid:>7} {comm}, in {function} for {}", time(*for_ms));
        for frame in stack.iter().take(FRAMES) {
            let _ = writeln!(text, "            {frame}");
        }
        let more = stack.len().saturating_sub(FRAMES) as u64 + more_frames;
        if more > 0 {
            let _ = writeln!(text, "            and {more} more");
        }
    }
    if patch.more_holders > 0 {
        let _ = writeln!(text, "          and {} more", patch.more_holders);
    }
    for doubt in &patch.doubts {
        let _ = writeln!(text, "  ? {doubt}");
    }
    if patch.more_doubts > 0 {
        let _ = writeln!(text, "  ? and {} more", patch.more_doubts);
    }
}

/// Milliseconds as people say them.
fn time(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
