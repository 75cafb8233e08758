//! The control API: HTTP and JSON on a Unix socket, in the style of Cloud Hypervisor's.
//!
//! | file | noun |
//! |---|---|
//! | [`model`] | what goes over the wire |
//! | [`machine`] | the seam: what the API needs of the machine it controls |
//! | `routes` | the endpoints, each with its description; the OpenAPI document is made of them |
//! | `patches` | those for patches |
//! | `traps` | those for watched pages |
//! | `query` | what is asked for in particular, behind a path |
//! | `refusal` | what a client is told when a request is not carried out |
//! | `server` | one thread that serves all clients, with a limit on everything a client can hold |

mod description;
pub mod machine;
pub mod model;
mod patches;
mod query;
mod refusal;
mod routes;
mod server;
mod traps;

pub use description::{openapi, openapi_json};
pub use machine::{ControlError, MachineControl};
pub use server::{ControlServer, ServerError};
pub use traps::Arming;
