//! What traps were, in numbers.

/// Counted since the guest was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Accesses that were told of.
    pub accesses: u64,
    /// Instructions that were carried out here, on behalf of the vCPU.
    pub in_place: u64,
    /// Instructions, or iterations of a repeated one, that a vCPU carried out alone.
    pub stepped: u64,
    /// Interrupts and exceptions whose frame was pushed to a watched page.
    pub delivered: u64,
    /// Accesses of KVM's own emulator.
    pub emulated: u64,
    /// Writes of devices and of the VMM.
    pub host: u64,
    /// Changes that nobody was seen to make.
    pub unseen: u64,
    /// vCPUs that came for a page that was not watched any more, or for one of which nothing could be told.
    pub again: u64,
    /// Steps in which everything had to be opened and compared, for it was not known what would be written.
    pub compared: u64,
    /// Steps that an event came before, or that left for a device.
    pub unfinished: u64,
    /// Pages that are no longer watched although nobody asked for that.
    pub lost: u64,
}
