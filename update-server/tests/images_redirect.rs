//! Returns that are redirected, in a guest that stands still. `LUCOS_IMAGES` names the folder with the kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;

use patch_module::{InGuest, Known, STUBS, in_guests, put, resolve};
use small_guest::Guest;
use update_server::addr::Gva;
use update_server::census::{self, Census, Frame, Outcome};
use update_server::guest::{Paused, Vcpu};
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::phases::drain::Draining;
use update_server::phases::patch_module::PatchModule;
use update_server::phases::place::OldFunction;
use update_server::phases::stack_check::Presence;
use update_server::server::{
    Consistency, Import, Old, Patch, PatchId, Replacement, SwitchError, UpdateServer,
};
use update_server::x86::stub;

/// The unwind table of the small guest's module: where addresses and entries are, and how many there are already.
const ADDRESSES: Gva = Gva(0xffff_ffff_c000_1000);
const ENTRIES: Gva = Gva(0xffff_ffff_c000_1800);
const STRUCTURE: Gva = Gva(0xffff_ffff_c000_4000);
const OWN: u64 = 2;
/// Stubs, and what ends them.
const ADDED: u64 = 257;

struct Bench<'p> {
    guest: Guest<'p>,
    model: &'p Model,
    server: UpdateServer,
    sections: BTreeMap<String, Gva>,
}

/// Runs a test on each kernel, with a patch of a function that somebody sleeps in.
fn bench(test: &str, run: impl Fn(&str, Bench<'_>, PatchId)) {
    in_guests(test, |name, InGuest { guest, model, module, sections }| {
        let mut bench = Bench { guest, model, server: UpdateServer::default(), sections };
        bench.add_table();
        let id = bench.add(module);
        run(name, bench, id);
    });
}

impl<'p> Bench<'p> {
    /// Makes the patch's module and its stubs a part of the guest's module, which pins itself, and adds what objtool and the guest's loader make for them to its unwind table.
    fn add_table(&self) {
        let types = self.model.image().types();
        let size =
            types.offset("module", "mem.size").or_else(|_| types.offset("module", "core_layout.text_size"));
        Known { guest: &self.guest, model: self.model }.listed(false);
        put(&self.guest, STRUCTURE.wrapping_add(size.unwrap()), &0xf000_u32.to_le_bytes());
        let count = types.offset("module", "refcnt").unwrap();
        put(&self.guest, STRUCTURE.wrapping_add(count), &2_u32.to_le_bytes());
        let offset = types.offset("module", "arch.num_orcs").unwrap();
        let count = u32::try_from(OWN + ADDED).unwrap();
        put(&self.guest, STRUCTURE.wrapping_add(offset), &count.to_le_bytes());
        for index in 0..ADDED {
            let place = ADDRESSES.wrapping_add((OWN + index) * 4);
            let distance = STUBS.wrapping_add(index * 8).0.wrapping_sub(place.0) & 0xffff_ffff;
            put(&self.guest, place, &u32::try_from(distance).unwrap().to_le_bytes());
            put(&self.guest, entry_at(index), &self.placeholder(index));
        }
    }

    /// RSP and 8 or 16, a call's frame (`arch/x86/include/asm/orc_types.h`: `ORC_REG_SP` 5, `ORC_TYPE_CALL` 0, and 2 since 6.4).
    fn placeholder(&self, index: u64) -> [u8; 6] {
        let kind = if self.model.image().release().starts_with("6.1.") { 0 } else { 2 };
        [if index.is_multiple_of(2) { 8 } else { 16 }, 0, 0, 0, 5, kind]
    }

    /// A patch of the first function that can be patched while somebody sleeps in it.
    fn add(&mut self, module: &PatchModule) -> PatchId {
        let census = self.census();
        let image = self.model.image();
        let sleeps = census.stacks().filter(|stack| stack.frames[0].slot.is_some());
        let mut inner = sleeps.flat_map(|stack| &stack.frames[1..stack.frames.len() - 1]);
        let old = inner.find_map(|frame| {
            let (symbol, offset) = image.symbols().containing(frame.address)?;
            let old = OldFunction::find(image, symbol.name, None).ok()?;
            (offset > 32).then_some(old)
        });
        let old = old.unwrap();
        let import = |name: &str| Import::Image { linked: resolve(name).unwrap(), absolute: false };
        let patch = Patch {
            name: "told".to_owned(),
            functions: vec![Replacement { old: Old::Image(old), new: "replaced".to_owned() }],
            imports: module.undefined().map(|name| (name.to_owned(), import(name))).collect(),
            module: module.clone(),
            requires: Vec::new(),
            consistency: Consistency::Coexist,
            tombstones: false,
            redirect: true,
        };
        self.server.add(patch).unwrap()
    }

    fn kernel(&self) -> Running<'_, Guest<'p>> {
        Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap()
    }

    fn census(&self) -> Census {
        census::take(&self.kernel(), &self.guest).unwrap()
    }

    fn apply(&mut self, id: PatchId) -> Result<Presence, SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare(id, &kernel, &census, self.sections.clone())?;
        self.server.apply(&prepared, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn roll_back(&mut self, id: PatchId) -> Presence {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare_return(id, &kernel, &census).unwrap();
        self.server.roll_back(&prepared, &kernel, &self.guest, &census).unwrap()
    }

    fn presence(&self, id: PatchId) -> Presence {
        self.server.presence(id, &self.kernel(), &self.census()).unwrap()
    }

    /// The return addresses of `presence` as they were.
    fn restore(&self, presence: &Presence) {
        for leave in presence.holders.iter().filter_map(|holder| holder.leave) {
            put(&self.guest, leave.slot, &leave.to.0.to_le_bytes());
        }
    }

    /// What the guest's own table has for `at`, found as its unwinder does (`arch/x86/kernel/unwind_orc.c`, `__orc_find`).
    fn entry_of(&self, at: Gva) -> [u8; 6] {
        let symbol = |name| self.model.image().symbols().only(name).unwrap().address;
        let (first, end) = (symbol("__start_orc_unwind_ip"), symbol("__stop_orc_unwind_ip"));
        let kernel = self.kernel();
        let is_before = |index: &u64| {
            let place = first.wrapping_add(index * 4);
            place.wrapping_offset(kernel.space().u32(place).unwrap().cast_signed().into()) <= at
        };
        let index = (0..(end.0 - first.0) / 4).take_while(is_before).last().unwrap();
        kernel.space().array(symbol("__start_orc_unwind").wrapping_add(index * 6)).unwrap()
    }
}

fn entry_at(index: u64) -> Gva {
    ENTRIES.wrapping_add((OWN + index) * 6)
}

/// What each task's stack looks like to who does not know of stubs.
fn frames(census: &Census) -> Vec<Vec<Frame>> {
    let plain = |frame: &Frame| Frame { stub: None, ..*frame };
    census.stacks().map(|stack| stack.frames.iter().map(plain).collect()).collect()
}

fn stubs(presence: &Presence) -> Vec<Gva> {
    presence.holders.iter().filter_map(update_server::phases::stack_check::Holder::stub).collect()
}

#[test]
fn returns_go_through_stubs_and_are_seen_through() {
    bench("returns_go_through_stubs_and_are_seen_through", |name, mut bench, id| {
        let before = frames(&bench.census());
        let presence = bench.apply(id).unwrap();
        let taken = stubs(&presence);
        assert!(!taken.is_empty() && taken.len() == presence.holders.len(), "{name}: {presence:?}");
        let space = bench.kernel();
        for (index, holder) in (0..).zip(&presence.holders) {
            let leave = holder.leave.unwrap();
            let at = STUBS.wrapping_add(index * 8);
            assert_eq!(leave.stub, Some(at), "{name}");
            assert_eq!(space.space().pointer(leave.slot), Ok(stub::entry(at)), "{name}");
            assert_eq!(stub::target(at, space.space().array(at).unwrap()), Some(leave.to), "{name}");
            let entry: [u8; 6] = space.space().array(entry_at(index)).unwrap();
            assert_eq!(entry, bench.entry_of(Gva(leave.to.0 - 1)), "{name}");
        }
        let census = bench.census();
        assert!(census.doubts.is_empty(), "{name}: {:?}", census.doubts);
        assert_eq!(frames(&census), before, "{name}");
        assert!(census.stacks().all(|stack| stack.outcome == Outcome::Complete), "{name}");
        assert_eq!(bench.presence(id), presence, "{name}");
        assert_eq!(bench.server.waiting().collect::<Vec<_>>(), taken, "{name}");
    });
}

#[test]
fn a_vcpu_in_a_stub_is_on_its_way_to_the_caller() {
    bench("a_vcpu_in_a_stub_is_on_its_way_to_the_caller", |name, mut bench, _| {
        let vcpus = bench.guest.vcpus().to_vec();
        // It stands before the end of a call.
        let to = Gva(vcpus[0].rip + 1);
        put(&bench.guest, STUBS, &stub::stub(STUBS, to).unwrap());
        let of_first = |bench: &Bench<'_>| {
            let census = bench.census();
            let stack = census.stacks().find(|stack| stack.frames[0].slot.is_none()).unwrap();
            assert_eq!(stack.outcome, Outcome::Complete, "{name}: {stack:?}");
            stack.frames.clone()
        };
        let before = of_first(&bench);
        for within in [1, 3] {
            let rip = STUBS.wrapping_add(within);
            bench.guest.set_vcpus(vec![Vcpu { rip: rip.0, ..vcpus[0].clone() }, vcpus[1].clone()]);
            let found = of_first(&bench);
            let first = [
                Frame { address: rip, behind_call: false, slot: None, stub: None },
                Frame { address: to, behind_call: true, slot: None, stub: None },
            ];
            assert_eq!(found, [&first[..], &before[1..]].concat(), "{name}, +{within}");
        }
    });
}

#[test]
fn who_has_come_through_is_believed_once() {
    bench("who_has_come_through_is_believed_once", |name, mut bench, id| {
        let presence = bench.apply(id).unwrap();
        let taken = stubs(&presence);
        let mut draining = Draining::of(presence.clone());
        assert!(!draining.is_watched() && draining.redirected() == taken.len(), "{name}");
        assert!(!bench.server.passed(STUBS.wrapping_add(255 * 8)), "{name}");
        for stub in &taken {
            assert!(bench.server.passed(*stub) && !bench.server.passed(*stub), "{name}");
            assert_eq!(draining.passed(*stub), [0], "{name}");
        }
        assert!(draining.is_over() && bench.server.waiting().next().is_none(), "{name}");
        // Nobody has left in truth: from now on each is looked at.
        let liars = Draining::of(bench.presence(id));
        assert_eq!((liars.holders().len(), liars.redirected()), (taken.len(), 0), "{name}");
        assert!(liars.is_watched(), "{name}");
        bench.restore(&presence);
        assert_eq!(bench.presence(id).holders.len(), taken.len(), "{name}");
    });
}

#[test]
fn stubs_are_in_use_until_their_frames_return() {
    bench("stubs_are_in_use_until_their_frames_return", |name, mut bench, id| {
        let applied = bench.apply(id).unwrap();
        let taken = stubs(&applied);
        // Rolled back, they are what is left of the patch.
        let leaving = bench.roll_back(id);
        assert_eq!(stubs(&leaving), taken, "{name}: {leaving:?}");
        assert!(leaving.holders.iter().all(|holder| &*holder.function == "told"), "{name}");
        assert_eq!(bench.presence(id), leaving, "{name}");
        // Applied again, they are inside once more, and leave as they would have.
        let ram = bench.guest.ram();
        let again = bench.apply(id).unwrap();
        assert_eq!(again, applied, "{name}");
        bench.roll_back(id);
        assert_eq!(bench.guest.ram(), ram, "{name}");
        // When they have, nobody is there.
        bench.restore(&applied);
        assert!(taken.iter().all(|stub| bench.server.passed(*stub)), "{name}");
        assert!(bench.presence(id).holders.is_empty(), "{name}");
        // Another kernel knows nothing of it.
        bench.apply(id).unwrap();
        bench.server.kernel_is_gone();
        assert!(bench.server.waiting().next().is_none() && !bench.server.passed(STUBS), "{name}");
    });
}

#[test]
fn stubs_are_used_again_and_can_run_out() {
    bench("stubs_are_used_again_and_can_run_out", |name, mut bench, id| {
        let mut wanted = 0;
        for _ in 0..300 {
            let applied = bench.apply(id).unwrap();
            let taken = stubs(&applied);
            wanted = applied.holders.len();
            assert_eq!(taken.len(), wanted, "{name}");
            bench.restore(&applied);
            assert!(taken.iter().all(|stub| bench.server.passed(*stub)), "{name}");
            bench.roll_back(id);
        }
        // Who never tells, as a task that ends inside, keeps its stub.
        let mut left = 256;
        while left > 0 {
            let applied = bench.apply(id).unwrap();
            assert_eq!(stubs(&applied).len(), left.min(wanted), "{name}");
            left -= left.min(wanted);
            bench.restore(&applied);
            bench.roll_back(id);
        }
        let applied = bench.apply(id).unwrap();
        assert!(stubs(&applied).is_empty() && applied.holders.len() == wanted, "{name}");
    });
}

#[test]
fn what_is_not_as_it_must_be_is_watched() {
    bench("what_is_not_as_it_must_be_is_watched", |name, mut bench, id| {
        let saved = bench.guest.save();
        let types = bench.model.image().types();
        let count = STRUCTURE.wrapping_add(types.offset("module", "arch.num_orcs").unwrap());
        let next = ADDRESSES.wrapping_add((OWN + 1) * 4);
        let other = STUBS.wrapping_add(12).0.wrapping_sub(next.0).to_le_bytes();
        let lies: [(&str, Gva, &[u8]); 3] = [
            ("no table", count, &2_u32.to_le_bytes()),
            ("another entry", entry_at(0), &[16]),
            ("another place", next, &other[..4]),
        ];
        for (what, at, bytes) in lies {
            put(&bench.guest, at, bytes);
            let applied = bench.apply(id).unwrap();
            assert!(!stubs(&applied).contains(&STUBS), "{name}: {what}");
            assert!(!applied.holders.is_empty(), "{name}: {what}");
            bench.server.kernel_is_gone();
            bench.guest.return_to(&saved);
            let patch = bench.server.patches().find(|(known, ..)| *known == id).unwrap().1.clone();
            bench.server = UpdateServer::default();
            assert_eq!(bench.server.add(patch).unwrap(), id, "{name}");
        }
        // Whichever write fails, nothing has changed, and then it works.
        let before = bench.guest.ram();
        let mut writes = 0;
        loop {
            bench.guest.fail_write(writes);
            if bench.apply(id).is_ok() {
                break;
            }
            assert_eq!(bench.guest.ram(), before, "{name}: write {writes}");
            writes += 1;
        }
        assert!(writes >= 4, "{name}: {writes}");
    });
}
