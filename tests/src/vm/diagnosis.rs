//! What a VMM does whose guest does not answer.

use std::fs;
use std::thread;
use std::time::Duration;

use super::Vm;

impl Vm {
    /// Its threads, and whether its guest still leaves for the VMM: what tells a hang of the guest from one of ours.
    pub(super) fn diagnosis(&self) -> String {
        let exits = || match self.lucos("counters") {
            Ok(counters) => counters["exits"].to_string(),
            Err(error) => format!("{error:#}"),
        };
        let first = exits();
        thread::sleep(Duration::from_secs(1));
        format!("exits {first}, a second later {}; threads:{}", exits(), threads(self.child.id()))
    }
}

/// Name, state, ticks in user and system mode, and place in the kernel of each thread (proc(5)).
fn threads(process: u32) -> String {
    let mut all = String::new();
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, stat, place) = (read("comm"), read("stat"), read("wchan"));
        // The name, in parentheses, is the only field with blanks in it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or("?");
        all = format!("{all} {}({} {}+{} {place})", name.trim(), field(3), field(14), field(15));
    }
    all
}
