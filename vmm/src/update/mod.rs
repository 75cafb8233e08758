//! Patches of the guest's kernel, from the operator's file to code that runs.
//!
//! One thread owns all that is known of them; vCPU threads, the agent and the control API send it events. The guest stands still
//! only while functions are switched, and while it is confirmed that nobody is left in old code.
//!
//! | file | its noun |
//! |---|---|
//! | `admission.rs` | a patch's file, and whether it may be applied at all |
//! | `keys.rs` | the keys whose signatures count |
//! | `access.rs` | the guest, as the owner gets at it |
//! | `updates.rs` | the way to the owner, for everybody else |
//! | `owner.rs` | the thread that owns all patches |
//! | `asked.rs` | what it is asked for by operators and by the guest |
//! | `answers.rs` | what it hears from the agent |
//! | `due.rs` | what it does for a patch when that is due |
//! | `job.rs` | one patch on its way |
//! | `step.rs` | what happens next to it, and when |
//! | `linking.rs` | what a patch and the guest's modules have to do with each other |
//! | `switch.rs` | one try to apply a patch or to roll it back |
//! | `stubs.rs` | what vCPUs see of frames that tell the host by themselves that they leave |
//! | `tombstones.rs` | old code that is filled with traps, and emptied when somebody comes to one |
//! | `drain.rs` | the wait for those who are left in old code |
//! | `sightings.rs` | since when they have been seen there |
//! | `removal.rs` | the way to a guest without a patch's module |
//! | `board.rs` | what everybody may read of it |

mod access;
mod admission;
mod answers;
mod asked;
mod board;
mod drain;
mod due;
mod job;
mod keys;
mod linking;
mod owner;
mod removal;
mod sightings;
mod step;
mod stubs;
mod switch;
mod tombstones;
mod updates;

pub use access::Access;
pub use admission::Admitted;
pub use board::Board;
pub use keys::{KeyFileError, read_keys};
pub use owner::Owner;
pub use stubs::StubExits;
pub use switch::Deadline;
pub use updates::{Inbox, Updates};
