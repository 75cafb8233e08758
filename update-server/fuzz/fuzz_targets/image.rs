//! A file that is said to be a kernel: a bzImage with any payload, or an ELF file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::addr::Gva;
use update_server::image::Image;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = Image::read(bytes) {
        for (_, start, len) in image.sections() {
            assert_eq!(image.bytes(start, len).map(<[u8]>::len), Some(len));
        }
        assert_eq!(image.bytes(Gva(u64::MAX), 2), None);
    }
});
