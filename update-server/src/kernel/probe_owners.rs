//! Who has put a probe on an instruction, as the guest says (`kernel/kprobes.c`, `kernel/trace/trace_kprobe.c`,
//! `kernel/trace/trace_probe.h`, `include/linux/trace_events.h`, `include/linux/bpf.h`; Linux 6.1 and 6.12).
//!
//! An allegation, for whoever has to remove the probe; nothing is decided by it.

use super::list;
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Btf, TypeError};
use crate::limits::{PROBE_OWNERS, PROBES};

/// Bytes of an event's name, and of its group's (`MAX_EVENT_NAME_LEN`).
const NAME_BYTES: usize = 64;

/// Where a kernel says whose a probe is, if it has probes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerLayout {
    address: u64,
    handler: u64,
    list: u64,
    /// What a probe calls that stands for several, that stands for a function's return, and that is a tracing event.
    several: Option<Gva>,
    returning: Option<Gva>,
    dispatchers: [Option<Gva>; 2],
    /// Offset of the probe in a `kretprobe`, and of what that calls.
    return_probe: u64,
    return_handler: u64,
    event: Option<EventLayout>,
}

/// Of tracing events.
#[derive(Debug, Clone, Copy)]
struct EventLayout {
    /// Offsets in a `trace_kprobe`.
    probe: u64,
    link: u64,
    event: u64,
    /// Offset in what all probes of one event share.
    call: u64,
    /// Offsets in `trace_event_call`, and of the group in its class.
    name: u64,
    class: u64,
    group: u64,
    programs: Option<ProgramLayout>,
    opened: Option<OpenedLayout>,
}

/// Of the BPF programs that run at an event.
#[derive(Debug, Clone, Copy)]
struct ProgramLayout {
    array: u64,
    items: u64,
    step: u64,
    program: u64,
    more: u64,
    number: u64,
    name: u64,
    name_bytes: usize,
}

/// Of those who have opened an event (`perf_event_open(2)`).
#[derive(Debug, Clone, Copy)]
struct OpenedLayout {
    /// Offset of a list for each processor.
    lists: u64,
    link: u64,
    owner: u64,
}

impl OwnerLayout {
    pub(super) fn of(types: &Btf, one: impl Fn(&str) -> Option<Gva>) -> Option<Self> {
        let offset = |member: &str| types.offset("kprobe", member).ok();
        Some(Self {
            address: offset("addr")?,
            handler: offset("pre_handler")?,
            list: offset("list")?,
            several: one("aggr_pre_handler"),
            returning: one("pre_handler_kretprobe"),
            dispatchers: ["kprobe_dispatcher", "kretprobe_dispatcher"].map(one),
            return_probe: types.offset("kretprobe", "kp").ok()?,
            return_handler: types.offset("kretprobe", "handler").ok()?,
            event: EventLayout::of(types).ok(),
        })
    }
}

impl EventLayout {
    fn of(types: &Btf) -> Result<Self, TypeError> {
        let call = |member: &str| types.offset("trace_event_call", member);
        let programs = || -> Result<_, TypeError> {
            let name = types.field("bpf_prog_aux", "name")?;
            Ok(ProgramLayout {
                array: call("prog_array")?,
                items: types.offset("bpf_prog_array", "items")?,
                step: types.size_of("bpf_prog_array_item")?,
                program: types.offset("bpf_prog_array_item", "prog")?,
                more: types.offset("bpf_prog", "aux")?,
                number: types.offset("bpf_prog_aux", "id")?,
                name: name.offset(),
                name_bytes: usize::try_from(name.size()).unwrap_or(0).min(NAME_BYTES),
            })
        };
        let opened = || -> Result<_, TypeError> {
            Ok(OpenedLayout {
                lists: call("perf_events")?,
                link: types.offset("perf_event", "hlist_entry")?,
                owner: types.offset("perf_event", "owner")?,
            })
        };
        Ok(Self {
            probe: types.offset("trace_kprobe", "rp.kp")?,
            link: types.offset("trace_kprobe", "devent.list")?,
            event: types.offset("trace_kprobe", "tp.event")?,
            call: types.offset("trace_probe_event", "call")?,
            name: call("name")?,
            class: call("class")?,
            group: types.offset("trace_event_class", "system")?,
            programs: programs().ok(),
            opened: opened().ok(),
        })
    }
}

/// What the guest says of one who has put a probe somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOwner {
    /// A tracing event: one that somebody has written into tracefs, or that `perf_event_open(2)` has made, as BPF's probes are.
    Event(Event),
    /// Code of the kernel or of a module, which has registered this function.
    Handler(Gva),
}

/// A tracing event that is a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `GROUP:NAME`. One that `perf_event_open(2)` has made has the name of the function, and that of many others.
    pub name: String,
    /// Whether it is listed in `kprobe_events` of tracefs, and can be removed there.
    pub is_listed: bool,
    /// BPF programs that run at it: the number and the name of each.
    pub programs: Vec<(u32, String)>,
    /// Tasks that have opened it: the number and the name of each.
    pub tasks: Vec<(u32, String)>,
}

/// Those who have put a probe on the instruction at `at`: [`PROBE_OWNERS`] at most. There are none where the guest's table has no
/// such probe.
pub fn probe_owners(kernel: &Running<'_, impl Memory>, at: Gva) -> Result<Vec<ProbeOwner>, ReadError> {
    let model = kernel.model();
    let (Some(probes), Some(layout)) = (&model.probes, &model.probe_owners) else { return Ok(Vec::new()) };
    let space = kernel.space();
    let mut left = PROBES;
    for list in probes.lists(kernel) {
        let mut node = space.pointer(list)?;
        while node.0 != 0 && left > 0 {
            if space.pointer(node.wrapping_add(layout.address))? == at {
                return of_probe(kernel, layout, node);
            }
            left -= 1;
            node = space.pointer(node)?;
        }
    }
    Ok(Vec::new())
}

fn of_probe(
    kernel: &Running<'_, impl Memory>,
    layout: &OwnerLayout,
    probe: Gva,
) -> Result<Vec<ProbeOwner>, ReadError> {
    let handler = kernel.space().pointer(probe.wrapping_add(layout.handler))?;
    if layout.several.map(|several| kernel.now(several)) != Some(handler) {
        return Ok(vec![owner(kernel, layout, probe)?]);
    }
    let mut owners = Vec::new();
    list::walk(kernel.space(), probe.wrapping_add(layout.list), |link| {
        owners.push(owner(kernel, layout, Gva(link.0.wrapping_sub(layout.list)))?);
        Ok(owners.len() < PROBE_OWNERS)
    })?;
    Ok(owners)
}

/// Whose the one probe at `probe` is.
fn owner(
    kernel: &Running<'_, impl Memory>,
    layout: &OwnerLayout,
    probe: Gva,
) -> Result<ProbeOwner, ReadError> {
    let is = |found: Gva, linked: Option<Gva>| linked.is_some_and(|linked| kernel.now(linked) == found);
    let mut handler = kernel.space().pointer(probe.wrapping_add(layout.handler))?;
    if is(handler, layout.returning) {
        let whole = Gva(probe.0.wrapping_sub(layout.return_probe));
        handler = kernel.space().pointer(whole.wrapping_add(layout.return_handler))?;
    }
    match &layout.event {
        Some(event) if layout.dispatchers.iter().any(|&dispatcher| is(handler, dispatcher)) => {
            let whole = Gva(probe.0.wrapping_sub(event.probe));
            self::event(kernel, event, whole).map(ProbeOwner::Event)
        }
        _ => Ok(ProbeOwner::Handler(handler)),
    }
}

fn event(kernel: &Running<'_, impl Memory>, layout: &EventLayout, probe: Gva) -> Result<Event, ReadError> {
    let space = kernel.space();
    let call = space.pointer(probe.wrapping_add(layout.event))?.wrapping_add(layout.call);
    let name = space.text(space.pointer(call.wrapping_add(layout.name))?, NAME_BYTES)?;
    let class = space.pointer(call.wrapping_add(layout.class))?;
    let group = space.text(space.pointer(class.wrapping_add(layout.group))?, NAME_BYTES)?;
    // One that is on no list is linked to itself.
    let link = probe.wrapping_add(layout.link);
    let is_listed = space.pointer(link)? != link;
    let programs = layout.programs.as_ref().map(|programs| self::programs(kernel, programs, call));
    let tasks = layout.opened.as_ref().map(|opened| tasks(kernel, opened, call));
    // The event is named even if there is no telling who uses it.
    Ok(Event {
        name: format!("{group}:{name}"),
        is_listed,
        programs: programs.and_then(Result::ok).unwrap_or_default(),
        tasks: tasks.and_then(Result::ok).unwrap_or_default(),
    })
}

/// The BPF programs that run at the event of `call`.
fn programs(
    kernel: &Running<'_, impl Memory>,
    layout: &ProgramLayout,
    call: Gva,
) -> Result<Vec<(u32, String)>, ReadError> {
    let space = kernel.space();
    let array = space.pointer(call.wrapping_add(layout.array))?;
    let mut found = Vec::new();
    let mut item = array.wrapping_add(layout.items);
    while array.0 != 0 && found.len() < PROBE_OWNERS {
        let program = space.pointer(item.wrapping_add(layout.program))?;
        if program.0 == 0 {
            break;
        }
        let more = space.pointer(program.wrapping_add(layout.more))?;
        let number = space.u32(more.wrapping_add(layout.number))?;
        found.push((number, space.text(more.wrapping_add(layout.name), layout.name_bytes)?));
        item = item.wrapping_add(layout.step);
    }
    Ok(found)
}

/// The tasks that have opened the event of `call`. Each processor has a list of what is open on it.
fn tasks(
    kernel: &Running<'_, impl Memory>,
    layout: &OpenedLayout,
    call: Gva,
) -> Result<Vec<(u32, String)>, ReadError> {
    let space = kernel.space();
    let task = &kernel.model().layout.task;
    let lists = space.pointer(call.wrapping_add(layout.lists))?;
    let mut found = Vec::new();
    let mut left = PROBE_OWNERS;
    for area in kernel.per_cpu_areas()?.into_iter().flatten().filter(|_| lists.0 != 0) {
        let mut link = space.pointer(area.wrapping_add(lists.0))?;
        while link.0 != 0 && left > 0 {
            left -= 1;
            let owner = Gva(link.0.wrapping_sub(layout.link)).wrapping_add(layout.owner);
            let owner = space.pointer(owner)?;
            // It stays open for others who have it, when the task that has opened it ends.
            if owner.0 != 0 {
                let name = space.text(owner.wrapping_add(task.comm), kernel.model().layout.comm_bytes)?;
                found.push((space.u32(owner.wrapping_add(task.tgid))?, name));
            }
            link = space.pointer(link)?;
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
