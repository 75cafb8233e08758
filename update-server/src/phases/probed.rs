//! Whom to ask to remove a probe, in words.

use crate::addr::Gva;
use crate::census::{Code, Loaded};
use crate::guest::Memory;
use crate::kernel::probe_owners::{Event, ProbeOwner, probe_owners};
use crate::kernel::running::Running;

/// Who has put the probe on `at`, as the guest says; in any case something that can be read behind "of".
pub(super) fn owners(kernel: &Running<'_, impl Memory>, loaded: &Loaded, at: Gva) -> String {
    let owners = match probe_owners(kernel, at) {
        Ok(owners) => owners,
        Err(error) => return format!("an owner who cannot be found: {error}"),
    };
    if owners.is_empty() {
        return "nobody in the guest's table of probes".to_owned();
    }
    let code = Code::new(kernel, loaded);
    let words: Vec<String> = owners
        .into_iter()
        .map(|owner| match owner {
            ProbeOwner::Event(event) => of_event(event),
            ProbeOwner::Handler(at) => format!("the handler {}", code.name(at, false)),
        })
        .collect();
    words.join(" and of ")
}

fn of_event(event: Event) -> String {
    let Event { name, is_listed, programs, tasks } = event;
    let mut words =
        if is_listed { format!("the event {name} of tracefs") } else { format!("perf's event {name}") };
    let list = |named: Vec<(u32, String)>| {
        let named: Vec<_> = named.into_iter().map(|(number, name)| format!("{name} ({number})")).collect();
        named.join(", ")
    };
    if !programs.is_empty() {
        words = format!("{words} with the BPF program {}", list(programs));
    }
    if !tasks.is_empty() {
        words = format!("{words}, opened by {}", list(tasks));
    }
    words
}
