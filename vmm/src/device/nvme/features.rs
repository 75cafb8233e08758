//! Features (5.14, 5.21): the mandatory ones, most of them remembered and otherwise without effect, because
//! a disk made of a file has no arbitration bursts, power states or sensors.

use std::sync::atomic::Ordering;

use super::identify::WARNING_TEMPERATURE;
use super::shared::Shared;
use super::spec::{Command, Status};

/// Feature identifiers (figure 275).
mod id {
    pub(super) const ARBITRATION: u8 = 0x01;
    pub(super) const POWER_MANAGEMENT: u8 = 0x02;
    pub(super) const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub(super) const ERROR_RECOVERY: u8 = 0x05;
    pub(super) const WRITE_CACHE: u8 = 0x06;
    pub(super) const QUEUES: u8 = 0x07;
    pub(super) const INTERRUPT_COALESCING: u8 = 0x08;
    pub(super) const INTERRUPT_VECTOR: u8 = 0x09;
    pub(super) const WRITE_ATOMICITY: u8 = 0x0a;
    pub(super) const ASYNC_EVENTS: u8 = 0x0b;
}

/// Command dword 10 of Set Features: keep the value over a reset.
const SAVE: u32 = 1 << 31;
/// Interrupt Vector Configuration: Coalescing Disable. Completions that are there together share an
/// interrupt, but none is ever delayed to wait for more.
const COALESCING_DISABLED: u32 = 1 << 16;

/// The values of one controller, from reset to reset.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u32,
    interrupt_coalescing: u32,
    write_atomicity: u32,
    async_events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: 0,
            interrupt_coalescing: 0,
            write_atomicity: 0,
            async_events: 0,
        }
    }
}

impl Features {
    /// GET FEATURES: the current value. Others cannot be selected (Identify, ONCS bit 4).
    pub(super) fn get(&mut self, shared: &Shared, command: &Command) -> Result<u32, Status> {
        if command.dword(10) & 0x700 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match feature(command) {
            id::ARBITRATION => Ok(self.arbitration),
            id::POWER_MANAGEMENT => Ok(0),
            id::TEMPERATURE_THRESHOLD => Ok(u32::from(*self.threshold(command)?)),
            id::ERROR_RECOVERY => Ok(self.error_recovery),
            id::WRITE_CACHE => Ok(u32::from(shared.write_cache.load(Ordering::Relaxed))),
            id::QUEUES => Ok(queue_count(shared)),
            id::INTERRUPT_COALESCING => Ok(self.interrupt_coalescing),
            id::INTERRUPT_VECTOR if command.low(11) > shared.queues => Err(Status::INVALID_FIELD),
            id::INTERRUPT_VECTOR => Ok(u32::from(command.low(11)) | COALESCING_DISABLED),
            id::WRITE_ATOMICITY => Ok(self.write_atomicity),
            id::ASYNC_EVENTS => Ok(self.async_events),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// SET FEATURES; `queues_exist` when there is an I/O queue already.
    pub(super) fn set(
        &mut self,
        shared: &Shared,
        command: &Command,
        queues_exist: bool,
    ) -> Result<u32, Status> {
        let value = command.dword(11);
        if command.dword(10) & SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        match feature(command) {
            id::ARBITRATION => self.arbitration = value,
            // There is power state 0 and no other.
            id::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            id::TEMPERATURE_THRESHOLD => *self.threshold(command)? = command.low(11),
            id::ERROR_RECOVERY => self.error_recovery = value & 0xffff,
            id::WRITE_CACHE => {
                let enabled = value & 1 != 0;
                // What the cache holds becomes stable when it is switched off, as with a flush.
                if shared.write_cache.swap(enabled, Ordering::Relaxed) && !enabled {
                    shared.disk.sync().map_err(|_| Status::WRITE_FAULT)?;
                }
            }
            id::QUEUES if queues_exist => return Err(Status::SEQUENCE),
            id::QUEUES if command.low(11) == u16::MAX || command.high(11) == u16::MAX => {
                return Err(Status::INVALID_FIELD);
            }
            // The guest may ask for less or for more; it may use what there is (5.21.1.7).
            id::QUEUES => return Ok(queue_count(shared)),
            id::INTERRUPT_COALESCING => self.interrupt_coalescing = value & 0xffff,
            id::INTERRUPT_VECTOR if command.low(11) > shared.queues => return Err(Status::INVALID_FIELD),
            id::INTERRUPT_VECTOR if value & COALESCING_DISABLED == 0 => return Err(Status::NOT_CHANGEABLE),
            id::POWER_MANAGEMENT | id::INTERRUPT_VECTOR => {}
            id::WRITE_ATOMICITY => self.write_atomicity = value & 1,
            id::ASYNC_EVENTS => self.async_events = value,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// The threshold that dword 11 selects: the composite temperature's, over or under.
    fn threshold(&mut self, command: &Command) -> Result<&mut u16, Status> {
        match (command.dword(11) >> 16) & 0x3f {
            0x00 | 0x0f => Ok(&mut self.over_temperature),
            0x10 | 0x1f => Ok(&mut self.under_temperature),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

fn feature(command: &Command) -> u8 {
    command.dword(10).to_le_bytes()[0]
}

/// Number of Queues: completion queues above, submission queues below, both zero-based.
fn queue_count(shared: &Shared) -> u32 {
    u32::from(shared.queues - 1) * 0x0001_0001
}
