//! What comes in the registers and buffers of hypercalls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lucos_abi::{Call, Hello, Place, Report, Request, Section, answer, eax, line, patch_name, sections};
use zerocopy::{FromBytes, IntoBytes};

fuzz_target!(|bytes: &[u8]| {
    let Some((registers, buffer)) = bytes.split_first_chunk::<16>() else { return };
    let [number, eax_says, place @ ..] = registers.map(u64::from);
    let place = place.into_iter().fold(0, |word, byte| word << 8 | byte);
    assert_eq!(Place::of(Place::of(place).register()), Place::of(place));
    assert!(Call::from_number(number as u32).is_none_or(|call| call as u64 == number));
    let said = answer((eax_says as u32).wrapping_sub(16));
    assert_eq!(answer(eax(said)), said);

    if let Ok((hello, _)) = Hello::read_from_prefix(buffer) {
        if hello.is_valid() {
            assert!(!hello.version().is_none_or(str::is_empty) && hello.lockdown().is_some());
        }
        let _ = (hello.obstacle(false), hello.obstacle(true));
        assert_eq!(hello.as_bytes(), &buffer[..size_of::<Hello>()]);
    }
    if let Ok((request, _)) = Request::read_from_prefix(buffer) {
        assert!(request.name().is_none_or(|name| !name.contains('/')));
        let _ = request.kind();
    }
    let _ = patch_name(buffer).map(|name| assert_eq!(name.as_bytes(), buffer));
    let Some((_, text)) = Report::read(buffer) else { return };
    let read = sections(text).map_while(Result::ok).collect::<Vec<Section<'_>>>();
    let mut written = String::new();
    for section in &read {
        line(*section, &mut written).expect("a string takes all");
    }
    assert!(sections(written.as_bytes()).map_while(Result::ok).eq(read));
});
