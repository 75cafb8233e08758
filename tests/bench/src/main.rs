//! `lucos-bench`: measures lucos-vmm and QEMU side by side.
//!
//! It runs inside a KVM host of the test bed, started by `cargo xtask bench`, and prints one [`figure::Figure`] as
//! a line of JSON as soon as it has it. It is a program of its own for two reasons: `xtask` runs on the outer
//! machine, whose clock says little about what happens in an emulated host; and a shell in the host would cost
//! more time than some of the things that are measured. `docs/bench.md` says what each figure means.

mod api;
mod console;
mod exit_trace;
mod figure;
mod fio;
mod groups;
mod guest;
mod kvm_stats;
mod programs;
mod residency;
mod samples;
mod smaps;
mod threads;
mod vmm;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use groups::{Group, Setting};

/// Measure lucos-vmm and QEMU side by side; print one figure per line, as JSON.
#[derive(Debug, Parser)]
#[command(name = "lucos-bench")]
struct Arguments {
    /// What to measure; all when none is given.
    #[arg(value_name = "NAME")]
    groups: Vec<Group>,
    /// Rounds of each figure that is a median of rounds.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let setting = match Setting::prepare(arguments.rounds) {
        Ok(setting) => setting,
        Err(error) => {
            eprintln!("lucos-bench: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for group in Group::chosen(&arguments.groups) {
        // One group that fails takes nothing from the others.
        if let Err(error) = group.measure(&setting) {
            eprintln!("lucos-bench: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    code
}
