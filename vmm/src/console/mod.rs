//! The host ends of the serial ports.

mod agent;
mod escape;
mod input;
mod output;
mod terminal;
mod wake;

pub use agent::{AgentError, AgentSocket};
pub use input::{ConsoleCommands, ConsoleInput};
pub use output::OutputQueue;
pub use terminal::RawTerminal;
