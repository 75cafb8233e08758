//! The way to the agent in the guest and back: hypercalls through a port, and one byte on the second serial port that
//! wakes it. `lucos-abi` says what a call is.
//!
//! | file | its noun |
//! |---|---|
//! | `caller.rs` | the vCPU that calls: its arguments, and what it may do |
//! | `buffer.rs` | the buffer that it names, found by its page tables |
//! | `port.rs` | the port: from a call to its answer, on that vCPU's thread |
//! | `link.rs` | what is known of the agent, and all that goes to it and comes from it |
//! | `requests.rs` | what the agent is asked to do, until it has answered |
//! | `uploads.rs` | patches that are handed in from inside the guest |
//!
//! A call is answered at once, on the thread of its vCPU: it copies at most 64 KiB, and locks nothing while it does. What it
//! has changed waits to be taken by whoever owns updates ([`AgentEvents`]), in limits that no guest can exceed.
//!
//! It touches guest memory without passing the gate for devices. The vCPU that calls is not parked, so no pause is
//! complete before the call is.

mod buffer;
mod caller;
mod link;
mod port;
mod requests;
mod uploads;

pub use caller::Caller;
pub use link::{AgentEvents, AgentLink};
pub use port::HypercallPort;
pub use requests::{Answer, AskError, ModuleSection, Order, Outcome};
pub use uploads::Submission;
