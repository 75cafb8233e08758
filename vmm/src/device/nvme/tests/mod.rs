//! The controller as a driver sees it: through its BAR, its configuration space and guest memory.

mod commands;
mod driver;
mod hostile;
mod reset;
