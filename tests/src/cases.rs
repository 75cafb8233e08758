//! The tests, by what they are about.

mod agent;
mod boot;
mod console;
mod crash;
mod debian;
mod devices;
mod generations;
mod holes;
mod intel;
mod kernel;
mod kernels;
mod load;
mod modules;
mod patch;
mod pause;
mod planted;
mod refusals;
mod traps;

use crate::harness::Test;

/// All of them, in the order in which they are run: what tells most soonest comes first.
pub(crate) fn all() -> Vec<Test> {
    let groups: [&[Test]; 18] = [
        boot::TESTS,
        refusals::TESTS,
        devices::TESTS,
        agent::TESTS,
        patch::TESTS,
        pause::TESTS,
        traps::TESTS,
        kernel::TESTS,
        planted::TESTS,
        modules::TESTS,
        generations::TESTS,
        holes::TESTS,
        crash::TESTS,
        console::TESTS,
        debian::TESTS,
        load::TESTS,
        kernels::TESTS,
        intel::TESTS,
    ];
    groups.concat()
}
