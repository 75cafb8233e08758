//! Frames on their way between a tap and the rings.

use std::collections::VecDeque;

/// Longest frame with its header, in bytes: the virtio header, the Ethernet header with a VLAN tag, and the
/// longest IP packet.
pub(super) const FRAME_MAX: usize = 12 + 18 + 65_535;
/// Most frames in one batch.
pub(super) const FRAMES: usize = 64;
/// A batch takes no further frame once it holds this many bytes. Copying them takes some tens of
/// microseconds, and a pause waits no longer than that at the DMA gate.
const BYTES: usize = 128 << 10;

/// A bounded queue of frames, of any length up to [`FRAME_MAX`] each.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    /// Where each waiting frame lies.
    spans: VecDeque<(usize, usize)>,
    /// First byte behind the last frame.
    end: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; BYTES + FRAME_MAX], spans: VecDeque::with_capacity(FRAMES), end: 0 }
    }

    /// Whether the batch is at its limit.
    pub(super) fn is_full(&self) -> bool {
        self.spans.len() >= FRAMES || self.end >= BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Where the next frame goes; [`FRAME_MAX`] bytes unless the batch is full.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let end = (self.end + FRAME_MAX).min(self.bytes.len());
        &mut self.bytes[self.end..end]
    }

    /// Takes the first `len` bytes of [`Frames::room`] as a frame.
    pub(super) fn push(&mut self, len: usize) {
        let len = len.min(self.bytes.len() - self.end);
        self.spans.push_back((self.end, len));
        self.end += len;
    }

    /// The frame that waits longest.
    pub(super) fn front(&mut self) -> Option<&mut [u8]> {
        let &(start, len) = self.spans.front()?;
        self.bytes.get_mut(start..start + len)
    }

    /// Forgets that frame.
    pub(super) fn pop(&mut self) {
        self.spans.pop_front();
        if self.spans.is_empty() {
            self.end = 0;
        }
    }

    /// Forgets all frames.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.end = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_and_stop_at_the_limits() {
        let mut frames = Frames::new();
        let mut count: u8 = 0;
        while !frames.is_full() {
            count += 1;
            assert_eq!(frames.room().len(), FRAME_MAX);
            frames.room()[..3].fill(count);
            frames.push(3);
        }
        assert_eq!(usize::from(count), FRAMES);
        for expected in 1..=count {
            assert_eq!(frames.front().unwrap(), [expected; 3]);
            frames.pop();
        }
        assert!(frames.front().is_none() && !frames.is_full());
        while !frames.is_full() {
            frames.push(FRAME_MAX);
        }
        assert_eq!(frames.spans.len(), BYTES.div_ceil(FRAME_MAX));
        frames.push(FRAME_MAX);
        frames.clear();
        assert!(frames.is_empty());
    }
}
