//! Jumps written into a guest that stands still, and taken back. `LUCOS_IMAGES` names the folder with the kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod small_guest;

use std::sync::Arc;

use images::models;
use small_guest::{Guest, Plan, physical};
use update_server::addr::Gva;
use update_server::census::{self, Loaded};
use update_server::guest::{Paused, Vcpu};
use update_server::journal::{Edit, Journal, JournalError};
use update_server::kernel::probes::Probe;
use update_server::kernel::running::Running;
use update_server::phases::place::{OldFunction, Position};
use update_server::phases::rewrite::{self, TextError};
use update_server::phases::stack_check::{Presence, Watched};

/// Where new functions would be: in the memory of modules.
const NEW: Gva = Gva(0xffff_ffff_c000_8000);
const NEWER: Gva = Gva(0xffff_ffff_c000_9000);

/// Functions with a NOP of ftrace, without one, and with a static key at their beginning.
const FUNCTIONS: [&str; 4] = ["ipc_addid", "do_sys_poll", "__schedule", "native_sched_clock"];

#[test]
fn jumps_are_written_all_or_none_and_taken_back_to_the_byte() {
    for (name, model) in models("jumps_are_written_all_or_none_and_taken_back_to_the_byte") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let olds: Vec<_> = FUNCTIONS.map(|name| OldFunction::find(model.image(), name, None).unwrap()).into();
        let edits = |from, to| -> Vec<Edit> {
            olds.iter().flat_map(|old| rewrite::edits(&kernel, old, from, to).unwrap()).collect()
        };
        let before = guest.ram();
        let apply = edits(None, Some(NEW));
        // One more than there are functions: a static key has two ways on.
        assert_eq!(apply.len(), FUNCTIONS.len() + 1, "{name}");
        for old in &olds {
            rewrite::compare(&kernel, old, None, &[], &Loaded::default()).unwrap();
            assert!(old.places.iter().all(|place| place.at != old.text.start) || old.name == "__schedule");
        }
        // Whichever write fails, nothing is left of those before it.
        for failing in 0..apply.len() as u64 {
            guest.fail_write(failing);
            let error = Journal::check(kernel.space(), &apply).unwrap().commit(&guest).unwrap_err();
            assert!(matches!(error, JournalError::Failed { undone: true, .. }), "{name}: {error}");
            assert_eq!(guest.ram(), before, "{name}, write {failing}");
        }
        Journal::check(kernel.space(), &apply).unwrap().commit(&guest).unwrap();
        for old in &olds {
            rewrite::compare(&kernel, old, Some(NEW), &[], &Loaded::default()).unwrap();
            assert!(matches!(
                rewrite::compare(&kernel, old, None, &[], &Loaded::default()),
                Err(TextError::Differs { .. })
            ));
            for place in &old.places {
                let mut bytes = [0; 5];
                kernel.space().read(kernel.now(place.at), &mut bytes).unwrap();
                let target = update_server::x86::jump::target(kernel.now(place.at), bytes);
                assert_eq!(target, Some(NEW), "{name}, {}", old.name);
            }
        }
        // A second time, or over somebody else's bytes, it is refused before anything is written.
        let patched = guest.ram();
        assert!(matches!(Journal::check(kernel.space(), &apply), Err(JournalError::Differs { .. })));
        // Another patch on top, and both taken back.
        Journal::check(kernel.space(), &edits(Some(NEW), Some(NEWER))).unwrap().commit(&guest).unwrap();
        Journal::check(kernel.space(), &edits(Some(NEWER), Some(NEW))).unwrap().commit(&guest).unwrap();
        assert_eq!(guest.ram(), patched, "{name}");
        let back: Vec<_> = apply.iter().map(Edit::reversed).collect();
        Journal::check(kernel.space(), &back).unwrap().commit(&guest).unwrap();
        assert_eq!(guest.ram(), before, "{name}");
    }
}

#[test]
fn text_that_is_not_the_images_and_probes_are_refused() {
    for (name, model) in models("text_that_is_not_the_images_and_probes_are_refused") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let old = OldFunction::find(model.image(), "ipc_addid", None).unwrap();
        let place = kernel.now(old.places[0].at);
        let end = old.places[0].at.wrapping_add(old.places[0].len.into());
        for at in [place, kernel.now(end), kernel.now(old.text.end).wrapping_offset(-1)] {
            let word = Gva(at.0 & !7);
            let was = kernel.space().u64(word).unwrap();
            guest.write((physical(word), was ^ 1 << ((at.0 & 7) * 8)));
            let error = rewrite::compare(&kernel, &old, None, &[], &Loaded::default()).unwrap_err();
            let is_there = matches!(error, TextError::Differs { at: found, .. } if found == at);
            assert!(is_there, "{name}, {at}: {error}");
            guest.restore();
        }
        // One that is not armed has copied what will be overwritten, too.
        let mut loaded = Loaded::default();
        loaded.probes.push(Probe { at: place, slot: None, detour: None });
        let error = rewrite::compare(&kernel, &old, None, &[], &loaded).unwrap_err();
        assert!(matches!(error, TextError::Probed { .. }), "{name}: {error}");
        assert!(error.to_string().contains("nobody in the guest's table"), "{name}: {error}");
    }
}

#[test]
fn who_is_under_a_jump_or_inside_is_told_from_who_has_not_begun() {
    for (name, model) in models("who_is_under_a_jump_or_inside_is_told_from_who_has_not_begun") {
        let plan = Plan::new(&model);
        let mut guest = Guest::new(&plan);
        let old = Arc::new(OldFunction::find(model.image(), "ipc_addid", None).unwrap());
        let place = old.places[0];
        let position = |guest: &Guest<'_>| {
            let kernel = Running::find(&model, guest, guest.vcpus()).unwrap();
            let census = census::take(&kernel, guest).unwrap();
            let presence = Presence::of(&kernel, &census, &[Watched::Function(Arc::clone(&old))]);
            let found = presence.holders.first().map(|holder| holder.position);
            // Elsewhere than at its own instructions it would be a doubt.
            (found, presence.under().is_some(), presence.doubts.is_empty())
        };
        let behind = place.at.wrapping_add(place.len.into());
        let second = place.at.wrapping_add(2);
        for (rip, expected) in [
            (old.text.start, None),
            (place.at, None),
            (second, Some(Position::Under)),
            (behind, Some(Position::Inside)),
        ] {
            let stopped = Vcpu { rip: rip.0, ..plan.vcpus[0].clone() };
            guest.set_vcpus(vec![stopped, plan.vcpus[1].clone()]);
            let (found, under, _) = position(&guest);
            assert_eq!(found, expected, "{name}, {rip}");
            assert_eq!(under, expected == Some(Position::Under), "{name}, {rip}");
        }
        guest.set_vcpus(plan.vcpus.clone());
        assert_eq!(position(&guest), (None, false, true), "{name}");
    }
}
