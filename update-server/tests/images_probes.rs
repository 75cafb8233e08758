//! Who has put a probe somewhere, read out of a guest that says so. `LUCOS_IMAGES` names the folder with the kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod small_guest;

use images::models;
use small_guest::{DIRECT, Guest, Plan, physical};
use update_server::addr::Gva;
use update_server::guest::{Memory, Paused};
use update_server::kernel::model::Model;
use update_server::kernel::probe_owners::{Event, ProbeOwner, probe_owners};
use update_server::kernel::running::Running;

/// Room in the guest that nothing else uses, by what is put there.
const SEVERAL: Gva = Gva(DIRECT + 0x7_1000);
const TRACED: Gva = Gva(DIRECT + 0x7_2000);
const REGISTERED: Gva = Gva(DIRECT + 0x7_3000);
const EVENT: Gva = Gva(DIRECT + 0x7_4000);
const CLASS: Gva = Gva(DIRECT + 0x7_5000);
const NAMES: Gva = Gva(DIRECT + 0x7_6000);
const PROGRAMS: Gva = Gva(DIRECT + 0x7_7000);
const PROGRAM: Gva = Gva(DIRECT + 0x7_8000);
const MORE: Gva = Gva(DIRECT + 0x7_9000);
/// Where nothing is mapped.
const NOWHERE: u64 = 0xffff_a000_0000_0000;
/// Where the probe is, and the function that a module has registered for it.
const AT: u64 = 0xffff_ffff_8100_1234;
const HANDLER: u64 = 0xffff_ffff_c000_0010;

struct Writer<'a, 'p> {
    model: &'a Model,
    guest: &'a Guest<'p>,
}

impl Writer<'_, '_> {
    fn offset(&self, structure: &str, member: &str) -> u64 {
        self.model.image().types().offset(structure, member).unwrap()
    }

    fn symbol(&self, name: &str) -> Gva {
        self.model.image().symbols().only(name).unwrap_or_else(|| panic!("no one {name}")).address
    }

    fn word(&self, at: Gva, word: u64) {
        assert_eq!(at.0 % 8, 0);
        self.guest.write((physical(at), word));
    }

    fn member(&self, at: Gva, structure: &str, member: &str, word: u64) {
        self.word(at.wrapping_add(self.offset(structure, member)), word);
    }

    /// Up to eight bytes of text, which may not begin at a multiple of them.
    fn text(&self, at: Gva, text: &str) {
        for (index, byte) in text.bytes().chain([0]).enumerate() {
            let place = Gva(at.0 + index as u64);
            let word = Gva(place.0 & !7);
            let mut old = [0; 8];
            self.guest.read(physical(word), &mut old).unwrap();
            old[usize::try_from(place.0 & 7).unwrap()] = byte;
            self.word(word, u64::from_le_bytes(old));
        }
    }

    /// One probe that stands for a tracing event with a BPF program, and for what a module has registered.
    fn probes(&self) {
        self.word(self.symbol("kprobe_table").wrapping_add(8 * 17), SEVERAL.0);
        self.member(SEVERAL, "kprobe", "addr", AT);
        self.member(SEVERAL, "kprobe", "pre_handler", self.symbol("aggr_pre_handler").0);
        let traced = TRACED.wrapping_add(self.offset("trace_kprobe", "rp.kp"));
        let list = self.offset("kprobe", "list");
        let circle = [SEVERAL, traced, REGISTERED].map(|probe| probe.wrapping_add(list));
        for (node, next) in circle.iter().zip(circle.iter().cycle().skip(1)) {
            self.word(*node, next.0);
        }
        self.member(traced, "kprobe", "pre_handler", self.symbol("kprobe_dispatcher").0);
        self.member(REGISTERED, "kprobe", "pre_handler", HANDLER);
        self.member(TRACED, "trace_kprobe", "tp.event", EVENT.0);
        let link = TRACED.wrapping_add(self.offset("trace_kprobe", "devent.list"));
        self.word(link, link.0);
        let call = EVENT.wrapping_add(self.offset("trace_probe_event", "call"));
        self.member(call, "trace_event_call", "name", NAMES.0);
        self.member(call, "trace_event_call", "class", CLASS.0);
        self.member(call, "trace_event_call", "prog_array", PROGRAMS.0);
        self.member(CLASS, "trace_event_class", "system", NAMES.0 + 64);
        self.text(NAMES, "open");
        self.text(Gva(NAMES.0 + 64), "files");
        self.member(PROGRAMS, "bpf_prog_array", "items", PROGRAM.0);
        self.member(PROGRAM, "bpf_prog", "aux", MORE.0);
        let number = MORE.wrapping_add(self.offset("bpf_prog_aux", "id"));
        self.word(Gva(number.0 & !7), 7 << ((number.0 & 7) * 8));
        self.text(MORE.wrapping_add(self.offset("bpf_prog_aux", "name")), "watcher");
    }
}

#[test]
fn owners_are_named_as_the_guest_says() {
    for (name, model) in models("owners_are_named_as_the_guest_says") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let owners = || {
            let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
            probe_owners(&kernel, Gva(AT))
        };
        assert_eq!(owners(), Ok(Vec::new()), "{name}");
        let writer = Writer { model: &model, guest: &guest };
        writer.probes();
        let event = |programs: &[(u32, &str)]| {
            let programs = programs.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
            ProbeOwner::Event(Event {
                name: "files:open".into(),
                is_listed: false,
                programs,
                tasks: Vec::new(),
            })
        };
        let handler = ProbeOwner::Handler(Gva(HANDLER));
        assert_eq!(owners(), Ok(vec![event(&[(7, "watcher")]), handler.clone()]), "{name}");
        // Who uses an event is left out if that cannot be followed.
        writer.member(PROGRAM, "bpf_prog", "aux", NOWHERE);
        assert_eq!(owners(), Ok(vec![event(&[]), handler]), "{name}");
        // Nobody is found behind an address that leads nowhere, or comes round in a circle.
        writer.member(TRACED, "trace_kprobe", "tp.event", NOWHERE);
        assert!(owners().is_err(), "{name}");
        writer.member(SEVERAL, "kprobe", "addr", 0);
        writer.word(SEVERAL, SEVERAL.0);
        assert_eq!(owners(), Ok(Vec::new()), "{name}");
    }
}
