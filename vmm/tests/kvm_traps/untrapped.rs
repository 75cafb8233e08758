//! What a program leaves in memory, held against what it leaves when nothing is watched.

use update_server::watch::Access;
use vm_memory::{Bytes, GuestAddress};

use crate::entries::{DONE, GO, PAGE, RECORDS, STACK_PAGE};
use crate::heard::{Heard, bytes};
use crate::tiny::{Program, Vcpus, wait_until};
use crate::{PATIENCE, WAYS};

/// Where it is: what handlers record, the page of data and the one with the stack, which are watched.
const LEFT: [(&str, u64, usize); 3] =
    [("handlers", RECORDS, 0x200), ("page", PAGE, 0x1000), ("stack", STACK_PAGE, 0x1000)];

/// What was left, in the order of [`LEFT`].
pub(crate) type Left = [Vec<u8>; 3];

fn start(program: &Program, start: impl FnOnce(&Program) -> Vcpus) -> Vcpus {
    let vcpus = start(program);
    let source: Vec<u8> = (0..=255_u8).collect();
    vcpus.vm.ram().memory().write_slice(&source, GuestAddress(PAGE)).unwrap();
    vcpus
}

fn run(vcpus: &Vcpus) -> Left {
    vcpus.set_word(GO, 1);
    wait_until(PATIENCE, "the program", || {
        assert!(vcpus.stops().is_empty(), "{:?}", vcpus.stops());
        vcpus.word(DONE) == 1
    });
    LEFT.map(|(_, at, len)| bytes(vcpus, at, len))
}

/// Runs it with nothing watched, and has `untrapped` look at what it leaves; then with both pages watched in each way, for writes and
/// for all accesses, and compares. `trapped` looks at what each of these runs was.
pub(crate) fn is_as_untrapped(
    program: &Program,
    untrapped: impl FnOnce(&Left),
    trapped: impl Fn(&Vcpus, Access),
) {
    let left = run(&start(program, |program| Vcpus::start(program, 1)));
    untrapped(&left);
    for way in WAYS {
        for access in [Access::Writes, Access::All] {
            let vcpus = start(program, |program| Vcpus::start_as(program, 1, &[], way));
            let heard = Heard::of(&vcpus);
            heard.watch(&vcpus, &[PAGE, STACK_PAGE], access);
            let now = run(&vcpus);
            heard.end(&vcpus, &[PAGE, STACK_PAGE]);
            for ((name, ..), (now, left)) in LEFT.iter().zip(now.iter().zip(&left)) {
                let words = |bytes: &[u8]| -> Vec<u64> {
                    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
                };
                let both = words(now).into_iter().zip(words(left)).enumerate();
                let differs: Vec<_> =
                    both.filter(|(_, (now, left))| now != left).map(|(at, (a, b))| (at * 8, a, b)).collect();
                assert!(differs.is_empty(), "{way}, {access:?}, {name}: {differs:x?}");
            }
            let tally = vcpus.threads.traps().tally();
            assert!(tally.lost == 0 && tally.unseen == 0, "{way}, {access:?}: {tally:?}");
            trapped(&vcpus, access);
        }
    }
}
