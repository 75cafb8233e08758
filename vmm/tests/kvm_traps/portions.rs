//! Pages that begin to be watched otherwise than those beside them, while the guest writes to all.

use iced_x86::code_asm::*;
use lucos_vmm::boot::BOOT_PAGE_TABLES;
use update_server::addr::Gpa;
use update_server::watch::{Access, Kind, NotWatched, Watched};

use crate::entries::{GO, PAGE, let_the_host_in, wait_for_go};
use crate::heard::{Heard, Told};
use crate::tiny::{Program, Vcpus, uniprocessor, wait_until};
use crate::{PATIENCE, WAYS};

/// Next to each other.
const PAGES: [u64; 4] = [PAGE, PAGE + 0x1000, PAGE + 0x2000, PAGE + 0x3000];

fn program() -> Program {
    uniprocessor(|a| {
        let mut again = a.create_label();
        wait_for_go(a)?;
        let_the_host_in(a)?;
        a.set_label(&mut again)?;
        a.inc(rax)?;
        for page in PAGES {
            a.mov(qword_ptr(page + 8), rax)?;
            a.lock().inc(qword_ptr(page + 0x100))?;
            a.mov(rbx, qword_ptr(page + 0x100))?;
        }
        a.jmp(again)
    })
}

/// Which of them were written to, and which were read, in ten rounds from here on.
fn told_of(vcpus: &Vcpus, heard: &Heard) -> [Vec<u64>; 2] {
    // What was told of the round in which it changed does not count.
    wait_for_rounds(vcpus);
    heard.take();
    wait_for_rounds(vcpus);
    let told = heard.take();
    heard.check(false);
    let of = |kind: Kind| {
        let is = |page: &u64| told.iter().any(|told: &Told| told.kind == kind && told.at & !0xfff == *page);
        PAGES.into_iter().filter(is).collect()
    };
    [of(Kind::Write), of(Kind::Read)]
}

fn wait_for_rounds(vcpus: &Vcpus) {
    let last = PAGES[3] + 8;
    let begin = vcpus.word(last);
    wait_until(PATIENCE, "ten rounds", || vcpus.word(last) > begin + 10);
}

#[test]
fn each_page_is_watched_as_was_last_asked() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&program(), 1, &[], way);
        let heard = Heard::of(&vcpus);
        let set = |pages: &[u64], access| {
            let pages: Vec<Gpa> = pages.iter().copied().map(Gpa).collect();
            vcpus.threads.set_access(&pages, access)
        };
        heard.watch(&vcpus, &PAGES, Access::Writes);
        vcpus.set_word(GO, 1);
        let [a, b, c, d] = PAGES;
        assert_eq!(told_of(&vcpus, &heard), [vec![a, b, c, d], vec![]], "{way}");
        // The middle of the range is given back.
        set(&[b, c], None).unwrap();
        assert_eq!(told_of(&vcpus, &heard), [vec![a, d], vec![]], "{way}");
        // One is watched more closely.
        set(&[a], Some(Access::All)).unwrap();
        assert_eq!(told_of(&vcpus, &heard), [vec![a, d], vec![a]], "{way}");
        // All or none: of what is asked for here, one is a page table.
        let table = BOOT_PAGE_TABLES;
        let refused = set(&[b, d, table], Some(Access::All));
        assert_eq!(refused, Err(NotWatched::Table(Gpa(table))), "{way}");
        assert_eq!(told_of(&vcpus, &heard), [vec![a, d], vec![a]], "{way}");
        set(&[a], Some(Access::Writes)).unwrap();
        assert_eq!(told_of(&vcpus, &heard), [vec![a, d], vec![]], "{way}");
        assert_eq!(vcpus.threads.traps().pages(), [Gpa(a), Gpa(d)], "{way}");
        // Those that are not watched may be among those that are to be so no longer.
        set(&PAGES, None).unwrap();
        assert_eq!(told_of(&vcpus, &heard), [const { Vec::<u64>::new() }; 2], "{way}");
        vcpus.check();
        assert_eq!(vcpus.threads.traps().tally().unseen, 0, "{way}");
    }
}
