//! The calls, and what they have in common.

/// The port: "LT" as a number. No device of a PC has it.
pub const PORT: u16 = 0x4c54;
/// Ports from [`PORT`] on that ioperm(2) has to allow: an access of 4 bytes needs all four.
pub const PORTS: u16 = 4;
/// The version of everything in this crate.
pub const VERSION: u32 = 1;
/// Bytes of a buffer at most: what a call costs the host, and for how long it holds a processor, has an end.
pub const CALL_BYTES: usize = 64 << 10;
/// Bytes of a patch that is handed in from inside, at most: a module of 16 MiB, and room for what describes it.
pub const UPLOAD_BYTES: u64 = 20 << 20;
/// The byte that the host sends on the second serial port when there is something to ask [`Call::Next`] for. Any other
/// byte may come there, too, and means the same.
pub const WAKE: u8 = b'\n';

/// What is asked of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// The caller is the guest's agent, and this is what it knows of its kernel: a [`crate::Hello`]. Returns 0. What an
    /// agent before it was asked for and has not answered is lost.
    Hello = 1,
    /// Writes the next [`crate::Request`] to the buffer. Returns its length, or 0 if there is none.
    Next = 2,
    /// Fills the buffer with bytes of a request's module. `rdi` is a [`Place`]: the request's id and an offset. Returns how
    /// many bytes; 0 at the end.
    Read = 3,
    /// Answers a request: a [`crate::Report`] with its text behind it. Returns 0.
    Report = 4,
    /// Hands in bytes of a patch. `rdi` is a [`Place`]: a number that the caller has made up for it, and the offset, which is
    /// where the bytes before ended. Offset 0 begins anew. Returns how many bytes were taken: all.
    Write = 5,
    /// Hands the patch over: the buffer is its name, and `rdi` a [`Place`] with its number and length. Returns the number of
    /// the submission, from 1 on. What becomes of it is the host's policy.
    Submit = 6,
    /// Fills the buffer with text: what the host says of its patches. Returns how many bytes.
    Status = 7,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Hello, Self::Next, Self::Read, Self::Report, Self::Write, Self::Submit, Self::Status];

    /// The call with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u32 == number)
    }

    /// What `rbx` holds for it.
    pub fn register(self) -> u64 {
        u64::from(VERSION) << 32 | u64::from(self as u32)
    }
}

/// A place in something that has a number: what `rdi` holds for calls that move a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the request or of the upload: the high 24 bits.
    pub number: u32,
    /// In bytes: the low 40 bits.
    pub offset: u64,
}

impl Place {
    const OFFSET_BITS: u32 = 40;
    /// The highest number.
    pub const NUMBER_MAX: u32 = (1 << (u64::BITS - Self::OFFSET_BITS)) - 1;
    /// The highest offset.
    pub const OFFSET_MAX: u64 = (1 << Self::OFFSET_BITS) - 1;

    /// As `rdi` holds it; what does not fit is cut off.
    pub fn register(self) -> u64 {
        u64::from(self.number) << Self::OFFSET_BITS | self.offset & Self::OFFSET_MAX
    }

    /// What `rdi` says.
    pub fn of(register: u64) -> Self {
        let number = u32::try_from(register >> Self::OFFSET_BITS).unwrap_or(Self::NUMBER_MAX);
        Self { number, offset: register & Self::OFFSET_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_number_and_nothing_else_is() {
        for call in Call::ALL {
            assert_eq!(Call::from_number(call as u32), Some(call));
            assert_eq!(call.register(), 1 << 32 | u64::from(call as u32));
        }
        for number in [0, 8, u32::MAX] {
            assert_eq!(Call::from_number(number), None);
        }
    }

    #[test]
    fn places_survive_the_register() {
        let highest = Place { number: Place::NUMBER_MAX, offset: Place::OFFSET_MAX };
        assert_eq!(Place::of(u64::MAX), highest);
        assert_eq!(highest.register(), u64::MAX);
        let place = Place { number: 7, offset: 0x12_3456 };
        assert_eq!(Place::of(place.register()), place);
    }
}
