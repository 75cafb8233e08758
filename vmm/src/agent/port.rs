//! The port: from a call to its answer.

use std::sync::Arc;

use lucos_abi::{Call, ErrorCode, Hello, Place, Report, Request, VERSION, eax, patch_name};
use zerocopy::{FromBytes, IntoBytes};

use super::buffer::Buffer;
use super::caller::Caller;
use super::link::AgentLink;
use crate::memory::GuestMemory;

/// Where hypercalls of one guest arrive.
#[derive(Debug, Clone)]
pub struct HypercallPort {
    memory: GuestMemory,
    link: Arc<AgentLink>,
}

impl HypercallPort {
    /// A port of the guest with this memory.
    pub fn new(memory: GuestMemory, link: Arc<AgentLink>) -> Self {
        Self { memory, link }
    }

    /// Answers a call; what the caller's `eax` is to hold.
    pub fn serve(&self, caller: &Caller) -> u32 {
        eax(self.answer(caller))
    }

    fn answer(&self, caller: &Caller) -> Result<u32, ErrorCode> {
        // Before the version, whose half of the register does not exist in the other modes.
        if !caller.is_in_64_bit_mode() {
            return Err(ErrorCode::BadMode);
        }
        if caller.rbx >> 32 != u64::from(VERSION) {
            return Err(ErrorCode::BadVersion);
        }
        let number = u32::try_from(caller.rbx & u64::from(u32::MAX)).unwrap_or(0);
        let call = Call::from_number(number).ok_or(ErrorCode::BadCall)?;
        let place = Place::of(caller.rdi);
        let has_place = matches!(call, Call::Read | Call::Write | Call::Submit);
        if !has_place && caller.rdi != 0 {
            return Err(ErrorCode::BadArgument);
        }
        let buffer = Buffer::of(&self.memory, caller)?;
        match call {
            Call::Hello => self.hello(&buffer),
            Call::Next => self.next(&buffer),
            Call::Read => self.read(&buffer, place),
            Call::Report => self.report(&buffer),
            Call::Write => self.write(&buffer, place),
            Call::Submit => self.submit(&buffer, place),
            Call::Status => give(&buffer, self.link.status().as_bytes()),
        }
    }

    fn hello(&self, buffer: &Buffer<'_>) -> Result<u32, ErrorCode> {
        if buffer.len() != size_of::<Hello>() {
            return Err(ErrorCode::BadLength);
        }
        let hello = Hello::read_from_bytes(&buffer.read()?).map_err(|_| ErrorCode::BadLength)?;
        if !hello.is_valid() {
            return Err(ErrorCode::BadArgument);
        }
        self.link.say_hello(hello);
        Ok(0)
    }

    fn next(&self, buffer: &Buffer<'_>) -> Result<u32, ErrorCode> {
        if buffer.len() < size_of::<Request>() {
            return Err(ErrorCode::BadLength);
        }
        let Some(request) = self.link.next()? else { return Ok(0) };
        let given = give(buffer, request.as_bytes());
        if given.is_err() {
            self.link.put_back(request.id.get());
        }
        given
    }

    fn read(&self, buffer: &Buffer<'_>, place: Place) -> Result<u32, ErrorCode> {
        let module = self.link.module(place.number)?;
        let offset = usize::try_from(place.offset).map_err(|_| ErrorCode::BadOffset)?;
        give(buffer, module.get(offset..).ok_or(ErrorCode::BadOffset)?)
    }

    fn report(&self, buffer: &Buffer<'_>) -> Result<u32, ErrorCode> {
        let bytes = buffer.read()?;
        if bytes.len() < size_of::<Report>() {
            return Err(ErrorCode::BadLength);
        }
        let (report, text) = Report::read(&bytes).ok_or(ErrorCode::BadArgument)?;
        self.link.report(&report, text)?;
        Ok(0)
    }

    fn write(&self, buffer: &Buffer<'_>, place: Place) -> Result<u32, ErrorCode> {
        // First, so that what is not wanted is not copied.
        self.link.check_upload(place, buffer.len())?;
        self.link.upload(place, &buffer.read()?)?;
        Ok(count(buffer.len()))
    }

    fn submit(&self, buffer: &Buffer<'_>, place: Place) -> Result<u32, ErrorCode> {
        let bytes = buffer.read()?;
        self.link.submit(place, patch_name(&bytes).ok_or(ErrorCode::BadArgument)?)
    }
}

/// Fills the buffer with as much of `bytes` as it takes; returns how many that are.
fn give(buffer: &Buffer<'_>, bytes: &[u8]) -> Result<u32, ErrorCode> {
    let part = &bytes[..bytes.len().min(buffer.len())];
    buffer.write(part)?;
    Ok(count(part.len()))
}

/// A count of bytes of a buffer, which has at most 64 KiB.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use lucos_abi::{CALL_BYTES, PATCH_NAME_BYTES, UPLOAD_BYTES, answer, padded};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::agent::{AgentEvents, Answer, Order, Outcome};
    use crate::memory::GuestRam;

    /// Tables of one level each, the last one with a page for each kind of trouble.
    const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
    /// What the entries of the last table say: rights in the lowest bits (Intel SDM vol. 3A, 5.5.4).
    const PRESENT: u64 = 1;
    const WRITE: u64 = 2;
    const USER: u64 = 4;
    /// 32 pages of the caller's own, from address 0 on and from 1 MiB on in RAM.
    const PAGES: u64 = 32;
    const RAM: u64 = 0x10_0000;
    /// More addresses.
    const READ_ONLY: u64 = PAGES << 12;
    const KERNELS: u64 = (PAGES + 1) << 12;
    const NOT_RAM: u64 = (PAGES + 2) << 12;
    const ABSENT: u64 = (PAGES + 3) << 12;
    /// The same tables as of the kernel's half.
    const UPPER: u64 = 0xffff_8000_0000_0000;

    #[derive(Default)]
    struct Changes(AtomicU64);

    impl AgentEvents for Changes {
        fn changed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Guest {
        ram: GuestRam,
        link: Arc<AgentLink>,
        port: HypercallPort,
        changes: Arc<Changes>,
    }

    impl Guest {
        fn new() -> Self {
            let ram = GuestRam::new(4 << 20).unwrap();
            let changes = Arc::new(Changes::default());
            let link = Arc::new(AgentLink::new(Arc::clone(&changes) as _));
            let port = HypercallPort::new(ram.memory().clone(), Arc::clone(&link));
            let guest = Self { ram, link, port, changes };
            guest.set_tables();
            guest
        }

        fn set_tables(&self) {
            for pair in TABLES.windows(2) {
                self.set(pair[0], pair[1] | PRESENT | WRITE | USER);
                self.set(pair[0] + 256 * 8, pair[1] | PRESENT | WRITE | USER);
            }
            (0..PAGES).for_each(|page| self.map_own(page, RAM));
            self.map(READ_ONLY, RAM | PRESENT | USER);
            self.map(KERNELS, RAM | PRESENT | WRITE);
            self.map(NOT_RAM, 1 << 40 | PRESENT | WRITE | USER);
            self.map(ABSENT, 0);
        }

        fn set(&self, at: u64, word: u64) {
            self.ram.memory().write_obj(word, GuestAddress(at)).unwrap();
        }

        fn map(&self, at: u64, entry: u64) {
            self.set(TABLES[3] + (at >> 12) * 8, entry);
        }

        /// Puts a page of the caller's own to its place among those from `from` on.
        fn map_own(&self, page: u64, from: u64) {
            self.map(page << 12, (from + (page << 12)) | PRESENT | WRITE | USER);
        }

        fn put(&self, at: u64, bytes: &[u8]) {
            self.ram.memory().write_slice(bytes, GuestAddress(RAM + at)).unwrap();
        }

        fn get(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.ram.memory().read_slice(&mut bytes, GuestAddress(RAM + at)).unwrap();
            bytes
        }

        fn call(&self, caller: &Caller) -> Result<u32, ErrorCode> {
            answer(self.port.serve(caller))
        }

        fn hello(&self) {
            self.put(0, hello().as_bytes());
            assert_eq!(self.call(&caller(Call::Hello, 0, 120, 0)), Ok(0));
        }

        /// An upload of these bytes as one piece, at most 64 KiB.
        fn write(&self, place: Place, bytes: &[u8]) -> Result<u32, ErrorCode> {
            self.put(0, bytes);
            self.call(&caller(Call::Write, 0, bytes.len() as u64, place.register()))
        }
    }

    fn hello() -> Hello {
        Hello {
            pid: 77.into(),
            lockdown: 0.into(),
            sig_enforce: 0.into(),
            modules_disabled: 0.into(),
            taint: 0.into(),
            version: padded("0.1.0"),
            release: padded("6.1.0"),
        }
    }

    /// User space in 64-bit mode.
    fn caller(call: Call, at: u64, len: u64, rdi: u64) -> Caller {
        Caller {
            rbx: call.register(),
            rcx: at,
            rsi: len,
            rdi,
            cr0: 1 << 31,
            cr3: TABLES[0],
            cr4: 0,
            efer: 1 << 10,
            code_is_64_bit: true,
            cpl: 3,
        }
    }

    fn place(number: u32, offset: u64) -> Place {
        Place { number, offset }
    }

    #[test]
    fn a_module_goes_in_and_its_addresses_come_back() {
        let guest = Guest::new();
        let module: Vec<u8> = (0..200_000_u32).map(|index| (index * 7).to_le_bytes()[1]).collect();
        let id = guest.link.ask(Order::Load { name: "fix".into(), module: module.clone().into() }).unwrap();
        guest.hello();
        assert_eq!(guest.link.hello(), Some(hello()));
        // Across a page's end, and to no multiple of anything.
        assert_eq!(guest.call(&caller(Call::Next, 0xff0, 200, 0)), Ok(72));
        let request = Request::read_from_bytes(&guest.get(0xff0, 72)).unwrap();
        assert_eq!((request.id.get(), request.bytes.get(), request.name()), (id, 200_000, Some("fix")));
        assert_eq!(guest.call(&caller(Call::Next, 0, 72, 0)), Ok(0));
        let mut copy = Vec::new();
        loop {
            let rdi = place(id, copy.len() as u64).register();
            let count = guest.call(&caller(Call::Read, 0x7ff, CALL_BYTES as u64, rdi)).unwrap() as usize;
            if count == 0 {
                break;
            }
            copy.extend(guest.get(0x7ff, count));
        }
        assert!(copy == module);
        let text = b".text 0xffffffffc0000000\n";
        let report = Report {
            id: id.into(),
            errno: 0.into(),
            taint: 1.into(),
            text_bytes: 25.into(),
            reserved: 0.into(),
        };
        guest.put(0, &[report.as_bytes(), text].concat());
        let changes = guest.changes.0.load(Ordering::Relaxed);
        assert_eq!(guest.call(&caller(Call::Report, 0, 24 + 25, 0)), Ok(0));
        assert!(guest.changes.0.load(Ordering::Relaxed) > changes);
        let answers = guest.link.take_answers();
        let [Answer { outcome: Outcome::Done { taint: 1, sections }, .. }] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!((&sections[0].name[..], sections[0].address), (".text", 0xffff_ffff_c000_0000));
    }

    #[test]
    fn a_patch_comes_out() {
        let guest = Guest::new();
        let patch: Vec<u8> = (0..150_000_u32).map(|index| (index * 13).to_le_bytes()[1]).collect();
        assert_eq!(guest.write(place(5, 0), b"x"), Err(ErrorCode::Denied));
        guest.link.allow_submissions(true);
        let mut offset = 0;
        for piece in patch.chunks(CALL_BYTES) {
            assert_eq!(guest.write(place(5, offset), piece), Ok(u32::try_from(piece.len()).unwrap()));
            offset += piece.len() as u64;
        }
        guest.put(0, b"fix.lup");
        assert_eq!(guest.call(&caller(Call::Submit, 0, 7, place(5, 150_000).register())), Ok(1));
        let taken = guest.link.take_submission().unwrap();
        assert!(taken.name == "fix.lup" && taken.bytes == patch);
        guest.link.set_status("1: applied");
        assert_eq!(guest.call(&caller(Call::Status, 0, 4, 0)), Ok(4));
        assert_eq!(guest.get(0, 4), b"1: a");
        guest.link.reset();
        assert_eq!((guest.link.hello(), guest.link.take_submission()), (None, None));
    }

    #[test]
    fn what_every_call_has_is_checked_first() {
        let guest = Guest::new();
        guest.hello();
        let good = caller(Call::Next, 0, 72, 0);
        assert_eq!(guest.call(&good), Ok(0));
        let wrong = [
            (Caller { cr0: 0, ..good }, ErrorCode::BadMode),
            (Caller { efer: 0, ..good }, ErrorCode::BadMode),
            (Caller { code_is_64_bit: false, rbx: 0, ..good }, ErrorCode::BadMode),
            (Caller { rbx: 2, ..good }, ErrorCode::BadVersion),
            (Caller { rbx: 2 << 32 | 2, ..good }, ErrorCode::BadVersion),
            (Caller { rbx: u64::MAX, ..good }, ErrorCode::BadVersion),
            (Caller { rbx: 1 << 32, ..good }, ErrorCode::BadCall),
            (Caller { rbx: 1 << 32 | 8, ..good }, ErrorCode::BadCall),
            (Caller { rbx: 1 << 32 | 0xffff_ffff, ..good }, ErrorCode::BadCall),
            (Caller { rdi: 1, ..good }, ErrorCode::BadArgument),
            (Caller { rsi: 0, ..good }, ErrorCode::BadLength),
            (Caller { rsi: 71, ..good }, ErrorCode::BadLength),
            (Caller { rsi: 0x1_0001, ..good }, ErrorCode::BadLength),
            (Caller { rsi: u64::MAX, ..good }, ErrorCode::BadLength),
            (Caller { rcx: u64::MAX, ..good }, ErrorCode::BadAddress),
            (Caller { rcx: u64::MAX - 71, ..good }, ErrorCode::BadAddress),
            (Caller { rcx: u64::MAX, cpl: 0, ..good }, ErrorCode::BadAddress),
        ];
        for (caller, code) in wrong {
            assert_eq!(guest.call(&caller), Err(code), "{caller:x?}");
        }
    }

    #[test]
    fn pages_are_used_with_the_rights_of_the_caller() {
        let guest = Guest::new();
        guest.hello();
        let module: Arc<[u8]> = vec![1; CALL_BYTES].into();
        let id = guest.link.ask(Order::Load { name: "fix".into(), module }).unwrap();
        assert_eq!(guest.call(&caller(Call::Next, 0, 72, 0)), Ok(72));
        let rdi = place(id, 0).register();
        let read = |at, cpl| guest.call(&Caller { cpl, ..caller(Call::Read, at, 0x1000, rdi) });
        let write = |at, cpl| guest.call(&Caller { cpl, ..caller(Call::Submit, at, 8, rdi) });
        for (at, user, kernel) in [
            (0, Ok(0x1000), Ok(0x1000)),
            (READ_ONLY, Err(ErrorCode::ReadOnly), Err(ErrorCode::ReadOnly)),
            (KERNELS, Err(ErrorCode::BadAddress), Ok(0x1000)),
            (NOT_RAM, Err(ErrorCode::BadAddress), Err(ErrorCode::BadAddress)),
            (ABSENT, Err(ErrorCode::Again), Err(ErrorCode::Again)),
            (UPPER, Err(ErrorCode::BadAddress), Ok(0x1000)),
            (UPPER | ABSENT, Err(ErrorCode::BadAddress), Err(ErrorCode::Again)),
            (1 << 47, Err(ErrorCode::BadAddress), Err(ErrorCode::BadAddress)),
            // The last byte decides, too.
            (READ_ONLY - 1, Err(ErrorCode::ReadOnly), Err(ErrorCode::ReadOnly)),
            (ABSENT - 1, Err(ErrorCode::Again), Err(ErrorCode::Again)),
        ] {
            assert_eq!((read(at, 3), read(at, 0)), (user, kernel), "{at:#x}");
        }
        // Reading needs no right to write: it comes to what is in the buffer, which is no name.
        guest.put(0, &[0xff; 8]);
        assert_eq!(write(READ_ONLY, 3), Err(ErrorCode::BadArgument));
        assert_eq!(write(KERNELS, 3), Err(ErrorCode::BadAddress));
    }

    #[test]
    fn a_request_that_cannot_be_told_stays() {
        let guest = Guest::new();
        guest.link.ask(Order::Unload { name: "fix".into() }).unwrap();
        assert_eq!(guest.call(&caller(Call::Next, 0, 72, 0)), Err(ErrorCode::NoAgent));
        guest.hello();
        assert_eq!(guest.call(&caller(Call::Next, ABSENT, 72, 0)), Err(ErrorCode::Again));
        assert_eq!(guest.call(&caller(Call::Next, 0, 72, 0)), Ok(72));
        // Another agent: what the first was told is lost.
        guest.hello();
        assert_eq!(guest.link.take_answers(), [Answer { id: 1, outcome: Outcome::Lost }]);
    }

    #[test]
    fn each_call_refuses_what_it_cannot_use() {
        let guest = Guest::new();
        guest.link.allow_submissions(true);
        for (call, error) in [
            (Call::Next, ErrorCode::NoAgent),
            (Call::Read, ErrorCode::NoAgent),
            (Call::Report, ErrorCode::BadArgument),
            (Call::Submit, ErrorCode::BadArgument),
        ] {
            guest.put(0, &[0xff; 128]);
            assert_eq!(guest.call(&caller(call, 0, 120, 0)), Err(error), "{call:?}");
        }
        assert_eq!(guest.call(&caller(Call::Hello, 0, 120, 0)), Err(ErrorCode::BadArgument));
        assert_eq!(guest.call(&caller(Call::Hello, 0, 121, 0)), Err(ErrorCode::BadLength));
        guest.hello();
        let reads = |number, offset| guest.call(&caller(Call::Read, 0, 8, place(number, offset).register()));
        assert_eq!(reads(1, 0), Err(ErrorCode::UnknownRequest));
        guest.link.ask(Order::Load { name: "fix".into(), module: vec![1; 9].into() }).unwrap();
        assert_eq!(reads(1, 0), Err(ErrorCode::UnknownRequest), "not handed out yet");
        guest.call(&caller(Call::Next, 0, 72, 0)).unwrap();
        assert_eq!((reads(1, 0), reads(1, 8), reads(1, 9)), (Ok(8), Ok(1), Ok(0)));
        assert_eq!(reads(1, 10), Err(ErrorCode::BadOffset));
        assert_eq!(reads(Place::NUMBER_MAX, Place::OFFSET_MAX), Err(ErrorCode::UnknownRequest));
        assert_eq!(reads(1, Place::OFFSET_MAX), Err(ErrorCode::BadOffset));
        assert_eq!(guest.call(&caller(Call::Report, 0, 23, 0)), Err(ErrorCode::BadLength));
        let wrong = Report {
            id: 2.into(),
            errno: 0.into(),
            taint: 0.into(),
            text_bytes: 0.into(),
            reserved: 0.into(),
        };
        guest.put(0, wrong.as_bytes());
        assert_eq!(guest.call(&caller(Call::Report, 0, 24, 0)), Err(ErrorCode::UnknownRequest));
        assert_eq!(guest.write(place(1, u64::MAX), b"x"), Err(ErrorCode::BadOffset));
        assert_eq!(guest.write(place(1, 0), b"x"), Ok(1));
        assert_eq!(guest.write(place(1, UPLOAD_BYTES), b"x"), Err(ErrorCode::BadOffset));
        let name = vec![b'n'; PATCH_NAME_BYTES + 1];
        guest.put(0, &name);
        let submit = caller(Call::Submit, 0, name.len() as u64, place(1, 1).register());
        assert_eq!(guest.call(&submit), Err(ErrorCode::BadArgument));
        assert_eq!(guest.call(&Caller { rsi: 9, rdi: 0, ..submit }), Err(ErrorCode::BadOffset));
        assert_eq!(guest.call(&Caller { rsi: 9, ..submit }), Ok(1));
        assert_eq!(guest.call(&Caller { rsi: 9, ..submit }), Err(ErrorCode::BadOffset));
        assert_eq!(guest.write(place(1, 0), b"x"), Err(ErrorCode::Busy));
    }

    #[test]
    fn a_buffer_that_moves_during_a_call_gets_all_or_again() {
        let guest = Guest::new();
        guest.hello();
        let module: Arc<[u8]> = (0..CALL_BYTES).map(|index| index.to_le_bytes()[0] | 1).collect();
        let id = guest.link.ask(Order::Load { name: "fix".into(), module: Arc::clone(&module) }).unwrap();
        guest.call(&caller(Call::Next, 0, 72, 0)).unwrap();
        let read = caller(Call::Read, 0, CALL_BYTES as u64, place(id, 0).register());
        let (first, second) = (RAM, RAM + (PAGES << 12));
        let stop = AtomicBool::new(false);
        let (mut whole, mut again) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for page in (0..).map(|turn| turn % 4).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    guest.map_own(page, second);
                    guest.map_own(page, first);
                    guest.map((page + 8) << 12, 0);
                    guest.map_own(page + 8, first);
                }
            });
            while whole < 200 || again < 200 {
                match guest.call(&read) {
                    Ok(count) => {
                        whole += 1;
                        assert_eq!(count as usize, CALL_BYTES);
                    }
                    Err(ErrorCode::Again) => again += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        // With the tables at rest all of it arrives.
        assert_eq!(guest.call(&read), Ok(0x1_0000));
        assert!(guest.get(0, CALL_BYTES) == *module);
    }

    #[test]
    fn random_calls_do_no_more_than_they_may() {
        let guest = Guest::new();
        guest.link.allow_submissions(true);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            // The 64-bit xorshift generator of Marsaglia (2003), with his triple (13, 7, 17).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut good = 0;
        for round in 0..200_000_u32 {
            let mut pick = |likely: &[u64]| {
                let word = random();
                let index = usize::try_from(word >> 32).unwrap_or(0) % (likely.len() + 1);
                likely.get(index).copied().unwrap_or(word >> (word % 64))
            };
            let number = pick(&[1, 2, 3, 4, 5, 6, 7]);
            let caller = Caller {
                rbx: number & 0xffff_ffff | pick(&[1, 1, 1, 1]) << 32,
                rcx: pick(&[0, 0, 0xfff, READ_ONLY, KERNELS, NOT_RAM, ABSENT, UPPER, u64::MAX]),
                rsi: pick(&[72, 120, 24, 1, 0x1_0000]),
                rdi: pick(&[0, place(1, 0).register(), place(1, 24).register(), place(2, 0).register()]),
                cr3: pick(&[TABLES[0], TABLES[0], TABLES[0], TABLES[0], TABLES[3]]),
                cr4: pick(&[0, 0, 0, 1 << 12]),
                cpl: if pick(&[0, 3]) == 0 { 0 } else { 3 },
                ..caller(Call::Hello, 0, 0, 0)
            };
            if round % 64 == 0 {
                guest.put(0, hello().as_bytes());
                drop(guest.link.take_submission());
                drop(guest.link.take_answers());
                drop(guest.link.ask(Order::Load { name: "fix".into(), module: vec![1; 99].into() }));
                // With other tables than these, the guest may have written over them.
                guest.set_tables();
            }
            good += u32::from(guest.call(&caller).is_ok());
        }
        assert!(good > 1000, "only {good} calls were good");
    }
}
