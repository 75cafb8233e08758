//! MSI-X (PCI Local Bus 3.0, 6.8.2): a table of messages, one for each interrupt vector of a function.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Capability ID of MSI-X.
pub(super) const CAPABILITY: u8 = 0x11;
/// Message Control: MSI-X Enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message Control: Function Mask.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Size of a table entry: address (8 bytes), data (4), vector control (4).
const ENTRY: usize = 16;
/// Vector Control: mask bit.
const VECTOR_MASKED: u8 = 1;

/// Delivers message-signalled interrupts to the guest.
pub trait MsiSender: Send + Sync {
    /// Sends `data` to `address`, as a write on the bus would.
    fn send(&self, address: u64, data: u32);
}

struct State {
    control: u16,
    table: Vec<u8>,
    pending: Vec<bool>,
}

/// The MSI-X state of one function, shared by its register side and its worker threads.
pub struct Msix {
    state: Mutex<State>,
    sender: Arc<dyn MsiSender>,
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix").field("vectors", &self.lock().pending.len()).finish_non_exhaustive()
    }
}

impl Msix {
    /// A table of `vectors` entries (1 to 2048), all masked as after reset.
    pub fn new(vectors: u16, sender: Arc<dyn MsiSender>) -> Arc<Self> {
        assert!((1..=2048).contains(&vectors), "MSI-X table of {vectors} vectors");
        let mut table = vec![0; usize::from(vectors) * ENTRY];
        for entry in table.chunks_exact_mut(ENTRY) {
            entry[12] = VECTOR_MASKED;
        }
        let state = State { control: 0, table, pending: vec![false; usize::from(vectors)] };
        Arc::new(Self { state: Mutex::new(state), sender })
    }

    /// Adds the capability to `config`, with the table at `table_offset` and the pending bits at
    /// `pba_offset`, both in BAR number `bar`; returns the capability's offset.
    pub fn add_capability(
        &self,
        config: &mut super::ConfigSpace,
        bar: u8,
        table_offset: u32,
        pba_offset: u32,
    ) -> usize {
        let vectors = u16::try_from(self.lock().pending.len()).expect("at most 2048");
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(pba_offset | u32::from(bar)).to_le_bytes());
        config.add_capability(CAPABILITY, &body, &(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
    }

    /// Takes over Message Control after the guest wrote it, and sends what this unmasked.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control;
        self.send_pending(&mut state);
    }

    /// Reads the table; bytes beyond it read as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        data.fill(0);
        let bytes = usize::try_from(offset).ok().and_then(|offset| state.table.get(offset..)).unwrap_or(&[]);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Writes the table and sends what this unmasked; bytes beyond it are ignored.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let Some(bytes) = usize::try_from(offset).ok().and_then(|offset| state.table.get_mut(offset..))
        else {
            return;
        };
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        self.send_pending(&mut state);
    }

    /// Reads the pending bits; bytes beyond them read as zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let first = offset.saturating_add(index).saturating_mul(8);
            let bits = state.pending.iter().skip(first).take(8);
            *byte = bits.enumerate().fold(0, |byte, (bit, &set)| byte | (u8::from(set) << bit));
        }
    }

    /// Raises interrupt `vector`: sent now, kept pending while masked, dropped while MSI-X is off or when
    /// there is no such vector (the guest chose the number).
    pub fn notify(&self, vector: u16) {
        let mut state = self.lock();
        let vector = usize::from(vector);
        if vector >= state.pending.len() || state.control & CONTROL_ENABLE == 0 {
            return;
        }
        if state.masked(vector) {
            state.pending[vector] = true;
        } else {
            self.send(&state, vector);
        }
    }

    /// Forgets everything, as a reset of the function does.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.control = 0;
        state.pending.fill(false);
        for entry in state.table.chunks_exact_mut(ENTRY) {
            entry.fill(0);
            entry[12] = VECTOR_MASKED;
        }
    }

    fn send_pending(&self, state: &mut State) {
        if state.control & CONTROL_ENABLE == 0 {
            return;
        }
        for vector in 0..state.pending.len() {
            if state.pending[vector] && !state.masked(vector) {
                state.pending[vector] = false;
                self.send(state, vector);
            }
        }
    }

    fn send(&self, state: &State, vector: usize) {
        let entry = &state.table[vector * ENTRY..][..ENTRY];
        let address = u64::from_le_bytes(entry[0..8].try_into().expect("8 bytes"));
        let data = u32::from_le_bytes(entry[8..12].try_into().expect("4 bytes"));
        self.sender.send(address, data);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn masked(&self, vector: usize) -> bool {
        self.control & CONTROL_FUNCTION_MASK != 0 || self.table[vector * ENTRY + 12] & VECTOR_MASKED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);

    impl MsiSender for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    fn table(vectors: u16) -> (Arc<Sent>, Arc<Msix>) {
        let sent = Arc::new(Sent::default());
        (Arc::clone(&sent), Msix::new(vectors, sent))
    }

    #[test]
    fn a_masked_vector_stays_pending_until_unmasked() {
        let (sent, msix) = table(2);
        msix.notify(1);
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(16, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(24, &0x41_u32.to_le_bytes());
        msix.notify(1);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
        assert!(sent.0.lock().unwrap().is_empty());
        msix.write_table(28, &[0; 4]);
        assert_eq!(*sent.0.lock().unwrap(), [(0xfee0_0000, 0x41)]);
        msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        msix.notify(1);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(sent.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn offsets_and_vectors_out_of_range_do_nothing() {
        let (sent, msix) = table(1);
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(12, &[0; 8]);
        msix.write_table(u64::MAX - 2, &[0; 8]);
        let mut data = [1; 8];
        msix.read_table(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
        msix.read_pending(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
        msix.notify(1);
        msix.notify(u16::MAX);
        assert!(sent.0.lock().unwrap().is_empty());
        msix.notify(0);
        assert_eq!(sent.0.lock().unwrap().len(), 1);
    }
}
