//! Several vCPUs, devices and pauses at the same pages.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::config::Trapping;
use update_server::addr::Gpa;
use update_server::watch::{Access, By, Kind, Watched};
use vm_memory::{Bytes, GuestAddress};

use crate::entries::let_the_host_in;
use crate::heard::{Heard, bytes};
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, wait_until};
use crate::{PATIENCE, WAYS, low};

/// One word for all, then one for each at 64 bytes, then one for each next to each other.
pub(crate) const SHARED: u64 = DATA + 0x1000;
pub(crate) const APART: u64 = SHARED + 0x400;
pub(crate) const CLOSE: u64 = SHARED + 0x800;
/// Stored, not counted up.
const STORED: u64 = SHARED + 0xc00;
/// How far each is, where nobody watches.
const ROUNDS: u64 = DATA + 0x4000;
/// They begin when this is not 0, and end after as many rounds.
const GO: u64 = DATA;

/// Every vCPU counts up: all the same word, locked, and its own ones, plainly.
pub(crate) fn counting() -> Program {
    multiprocessor(|a| {
        let (mut wait, mut again, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(r8d, edi)?;
        a.shl(r8d, 6)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.mov(r9, qword_ptr(GO))?;
        a.test(r9, r9)?;
        a.jz(wait)?;
        a.xor(r10d, r10d)?;
        let_the_host_in(a)?;
        a.set_label(&mut again)?;
        one_round(a)?;
        a.cmp(r10, r9)?;
        a.jb(again)?;
        a.set_label(&mut end)?;
        a.pause()?;
        a.jmp(end)
    })
}

fn one_round(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(r10)?;
    a.lock().inc(qword_ptr(SHARED))?;
    a.inc(qword_ptr(r8 + low(APART)))?;
    a.inc(dword_ptr(rdi * 4 + low(CLOSE)))?;
    a.mov(qword_ptr(rdi * 8 + low(STORED)), r10)?;
    a.mov(qword_ptr(r8 + low(ROUNDS)), r10)
}

pub(crate) fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[test]
fn no_write_is_missed_and_none_is_seen_twice() {
    const EACH: u64 = 250;
    for way in WAYS {
        for cpus in [1_u8, 2, 4] {
            let vcpus = Vcpus::start_as(&counting(), cpus, &[], way);
            let heard = Heard::of(&vcpus);
            heard.watch(&vcpus, &[SHARED], Access::Writes);
            vcpus.set_word(GO, EACH);
            wait_until(PATIENCE, "all rounds", || {
                (0..u64::from(cpus)).all(|cpu| vcpus.word(ROUNDS + cpu * 64) == EACH)
            });
            heard.end(&vcpus, &[SHARED]);
            let told = heard.take();
            assert!(told.iter().all(|told| told.kind == Kind::Write));
            // In the order told, each word counts up by one, whoever does it.
            let mut places = vec![(SHARED, EACH * u64::from(cpus))];
            for cpu in 0..u64::from(cpus) {
                places.extend([(APART + cpu * 64, EACH), (CLOSE + cpu * 4, EACH), (STORED + cpu * 8, EACH)]);
            }
            let all: u64 = places.iter().map(|(_, count)| count).sum();
            for (at, count) in places {
                let values: Vec<u64> =
                    told.iter().filter(|told| told.at == at).map(|told| word(&told.after)).collect();
                assert_eq!(values, (1..=count).collect::<Vec<_>>(), "{cpus} vCPUs, {way}, {at:#x}");
            }
            assert_eq!(told.len() as u64, all, "{cpus} vCPUs, {way}");
            // Each vCPU's own stores come in its order.
            for cpu in 0..u32::from(cpus) {
                let own: Vec<(u64, u64)> = told
                    .iter()
                    .filter(|told| matches!(told.by, By::Vcpu { id, .. } if id == cpu))
                    .map(|told| (told.at, word(&told.after)))
                    .collect();
                assert_eq!(own.len() as u64, EACH * 4, "{cpus} vCPUs, {way}");
                for (round, writes) in (1..).zip(own.chunks(4)) {
                    let places: Vec<u64> = writes.iter().map(|(at, _)| *at).collect();
                    let cpu = u64::from(cpu);
                    assert_eq!(places, [SHARED, APART + cpu * 64, CLOSE + cpu * 4, STORED + cpu * 8]);
                    assert!(writes[1..].iter().all(|(_, value)| *value == round));
                }
            }
            let tally = vcpus.threads.traps().tally();
            assert!(
                tally.unseen == 0 && tally.lost == 0 && tally.in_place >= EACH * u64::from(cpus),
                "{tally:?}"
            );
            vcpus.check();
        }
    }
}

#[test]
fn watching_begins_and_ends_under_writers() {
    const CPUS: u64 = 4;
    for (way, rounds) in [(Trapping::SecondView, 300), (Trapping::HoldAll, 60)] {
        let vcpus = Vcpus::start_as(&counting(), 4, &[], way);
        let heard = Heard::of(&vcpus);
        vcpus.set_word(GO, u64::MAX);
        let mut accesses = 0;
        for round in 0..rounds {
            let access = if round % 3 == 0 { Access::All } else { Access::Writes };
            // Nobody knows what is there when it begins: what is told is held against itself.
            vcpus.threads.set_access(&[Gpa(SHARED)], Some(access)).unwrap();
            std::thread::yield_now();
            vcpus.threads.set_access(&[Gpa(SHARED)], None).unwrap();
            let told = heard.take();
            accesses += told.len();
            for (at, len) in [(SHARED, 8), (APART, 8), (APART + 64, 8), (CLOSE, 4), (CLOSE + 4, 4)] {
                let of_word = told.iter().filter(|told| told.at == at && told.kind == Kind::Write);
                let values: Vec<(u64, u64)> =
                    of_word.map(|told| (word(&told.before), word(&told.after))).collect();
                let step = |pair: &(u64, u64)| pair.1 == pair.0 + 1;
                assert!(values.iter().all(step), "{way}, {at:#x} ({len} bytes): {values:?}");
                assert!(values.windows(2).all(|pair| pair[0].1 == pair[1].0), "{way}, {at:#x}: {values:?}");
            }
            heard.check(false);
        }
        assert!(accesses > 100, "{way}: {accesses} accesses");
        // Nothing was lost: the word of all is what their own ones add up to.
        vcpus.threads.pause().unwrap();
        let own: u64 = (0..CPUS).map(|cpu| vcpus.word(APART + cpu * 64)).sum();
        let shared = vcpus.word(SHARED);
        vcpus.threads.resume();
        // Each may have counted the one and not yet the other.
        assert!(shared >= own && shared - own <= CPUS, "{shared} and {own}");
        vcpus.check();
        assert!(vcpus.threads.traps().pages().is_empty());
    }
}

#[test]
fn a_pause_finds_everything_told() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&counting(), 4, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[SHARED], Access::Writes);
        vcpus.set_word(GO, u64::MAX);
        for _ in 0..50 {
            vcpus.threads.pause().unwrap();
            assert!(heard.image(SHARED) == bytes(&vcpus, SHARED, 4096), "{way}");
            vcpus.threads.resume();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let written = heard.take().len();
        assert!(written > 50, "{way}: {written} writes");
        heard.end(&vcpus, &[SHARED]);
        vcpus.check();
    }
}

/// Nobody is trapped meanwhile.
#[test]
fn what_devices_write_is_told_soon() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&counting(), 1, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[SHARED], Access::Writes);
        for value in 1..=5_u64 {
            vcpus.vm.ram().memory().write_obj(value, GuestAddress(SHARED + 0x100)).unwrap();
            let mut told = Vec::new();
            wait_until(PATIENCE, "the write", || {
                told = heard.take();
                !told.is_empty()
            });
            assert_eq!(
                (told.len(), told[0].by, told[0].after[0]),
                (1, By::Host, value.to_le_bytes()[0]),
                "{way}"
            );
        }
        heard.end(&vcpus, &[SHARED]);
    }
}

#[test]
fn what_devices_write_is_told() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&counting(), 4, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[SHARED], Access::Writes);
        vcpus.set_word(GO, u64::MAX);
        let place = SHARED + 0xf00;
        for value in 1..=200_u64 {
            vcpus.vm.ram().memory().write_obj(value, GuestAddress(place)).unwrap();
            if value % 20 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        heard.end(&vcpus, &[SHARED]);
        let told = heard.take();
        let values: Vec<u64> = told
            .iter()
            .filter(|told| told.by == By::Host)
            .map(|told| {
                let from = usize::try_from(place - told.at).unwrap();
                word(&told.after[from..(from + 8).min(told.after.len())])
            })
            .collect();
        assert!(!values.is_empty() && values.is_sorted(), "{way}: {values:?}");
        assert_eq!(vcpus.word(place), 200);
        let others = told.iter().filter(|told| told.at != place && told.by == By::Host).count();
        assert_eq!(others, 0, "{way}: what the guest wrote is the guest's");
    }
}
