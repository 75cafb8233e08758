//! What the host answers.

/// Why the host did not do what was asked. What it says is in `eax`, negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Nobody answers: a port without a device reads as all ones. No host of ours says this.
    Absent = 1,
    /// The caller speaks another version.
    BadVersion = 2,
    /// There is no such call.
    BadCall = 3,
    /// The caller is not in 64-bit mode with paging.
    BadMode = 4,
    /// The buffer is not all in memory that the caller may name.
    BadAddress = 5,
    /// The caller may not write to a part of the buffer, as its page tables stand. Writing to it helps where the kernel makes
    /// it writable for whoever does.
    ReadOnly = 6,
    /// A part of the buffer is not there at this moment, or was moved during the call. Touching it and trying again helps.
    Again = 7,
    /// The buffer is too long, too short, or not as long as what it holds.
    BadLength = 8,
    /// A field has a value that it cannot have.
    BadArgument = 9,
    /// The offset is not where the bytes before ended, or behind the end.
    BadOffset = 10,
    /// No request with this id waits for that.
    UnknownRequest = 11,
    /// It is more than may be handed in.
    TooLarge = 12,
    /// Only an agent may ask this, and nobody has said hello.
    NoAgent = 13,
    /// What was handed in before has not been looked at yet.
    Busy = 14,
    /// The operator does not let the guest do that.
    Denied = 15,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Absent,
        Self::BadVersion,
        Self::BadCall,
        Self::BadMode,
        Self::BadAddress,
        Self::ReadOnly,
        Self::Again,
        Self::BadLength,
        Self::BadArgument,
        Self::BadOffset,
        Self::UnknownRequest,
        Self::TooLarge,
        Self::NoAgent,
        Self::Busy,
        Self::Denied,
    ];

    /// The same in words, after "the host says: ".
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Absent => "nothing; this machine's VMM has no update server",
            Self::BadVersion => "it speaks another version of the hypercalls",
            Self::BadCall => "it does not know this hypercall",
            Self::BadMode => "hypercalls are made in 64-bit mode with paging",
            Self::BadAddress => "the buffer is not in memory of the caller",
            Self::ReadOnly => "the buffer is read-only",
            Self::Again => "the buffer was moved again and again",
            Self::BadLength => "the buffer has a wrong length",
            Self::BadArgument => "a field has an impossible value",
            Self::BadOffset => {
                "that is not where the bytes before ended; somebody else hands in a patch, too"
            }
            Self::UnknownRequest => "it does not wait for an answer to that",
            Self::TooLarge => "the patch is too large",
            Self::NoAgent => "it knows of no agent",
            Self::Busy => "a patch that was handed in before has not been looked at yet; try again",
            Self::Denied => "its operator lets the guest hand in no patches",
        }
    }
}

/// What `eax` says; a code that this version does not have is what somebody else says.
pub fn answer(eax: u32) -> Result<u32, ErrorCode> {
    if eax.cast_signed() >= 0 {
        return Ok(eax);
    }
    let code = eax.wrapping_neg();
    Err(ErrorCode::ALL.into_iter().find(|known| *known as u32 == code).unwrap_or(ErrorCode::Absent))
}

/// How `eax` says it; a count fits, as it is at most [`crate::CALL_BYTES`].
pub fn eax(answer: Result<u32, ErrorCode>) -> u32 {
    match answer {
        Ok(count) => count & (u32::MAX >> 1),
        Err(code) => (code as u32).wrapping_neg(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_register() {
        for code in ErrorCode::ALL {
            assert_eq!(answer(eax(Err(code))), Err(code));
            assert!(!code.sentence().is_empty());
        }
        assert_eq!(answer(eax(Ok(0x1_0000))), Ok(0x1_0000));
        assert_eq!(answer(u32::MAX), Err(ErrorCode::Absent));
        assert_eq!(answer(0x8000_0000), Err(ErrorCode::Absent));
    }
}
