//! The journey of a patch, in its order.
//!
//! | phase | what it answers |
//! |---|---|
//! | [`admit`] | whether the patch is for this kernel |
//! | [`patch_module`] | what the patch brings, as a module |
//! | [`link`] | whether what the guest has loaded is the patch |
//! | [`place`] | where a function can be made to jump to another one |
//! | [`module_function`] | the same of the kernel's modules, while the guest runs |
//! | [`quiet`] | whether the guest is changing its text at this moment |
//! | [`stack_check`] | who is in the code that is replaced |
//! | [`rewrite`] | which bytes change |
//! | [`redirect`] | who tells the host by himself that he leaves |
//! | [`drain`] | whether the last has left the code that was replaced |
//! | [`tombstones`] | what of that code can be filled with traps then |
//! | [`escape`] | whether anybody can still have an address of the patch's module then |
//! | [`unused`] | whether the module is unused, so that it can go |

pub mod admit;
pub mod doubts;
pub mod drain;
pub mod escape;
pub mod link;
pub mod loaded_module;
pub mod module_function;
mod no_place;
pub mod object;
pub mod patch_module;
pub mod place;
mod probed;
pub mod quiet;
pub mod redirect;
pub mod rewrite;
pub mod stack_check;
pub mod tombstones;
pub mod unused;
