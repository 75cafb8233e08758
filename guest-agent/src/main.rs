//! `lucos-agent`: the update server's hands in a guest.
//!
//! The host cannot run code in the guest's kernel by itself, so it asks this program to load a module the way any module is
//! loaded. The agent sleeps in read(2) on the second serial port; a byte there means that there is something to ask the host
//! for. It decides nothing and is trusted with nothing: the host checks what was loaded by itself.
//!
//! | file | its noun |
//! |---|---|
//! | `service` | `lucos-agent run`: sleep, ask, do, report |
//! | `serial` | the port that it sleeps on |
//! | `host` | the host, by hypercalls (`lucos-abi`) |
//! | `module` | a module of the kernel: loaded, unloaded, its sections |
//! | `kernel` | what the kernel says of itself |
//! | `patch` | `lucos-agent apply`: a patch handed in from inside |
//! | `sys` | every `unsafe` block |

mod host;
mod kernel;
mod module;
mod patch;
mod serial;
mod service;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use host::{Host, HostError};
use kernel::Kernel;

/// Let the host's update server patch this guest's kernel.
#[derive(Debug, Parser)]
#[command(name = "lucos-agent", version)]
#[command(after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 this machine's VMM has no update server.")]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Do what the host asks for, until stopped: load and unload modules.
    Run {
        /// The serial port that the host wakes the agent through.
        #[arg(long, value_name = "DEVICE", default_value = "/dev/ttyS1")]
        port: PathBuf,
    },
    /// Hand a patch to the host, which decides whether it is applied.
    Apply {
        /// The patch.
        file: PathBuf,
    },
    /// Show what the kernel allows, and what the host says of its patches.
    Status,
}

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Serial(#[from] serial::SerialError),
    #[error(transparent)]
    Patch(#[from] patch::PatchError),
}

impl Failure {
    fn code(&self) -> ExitCode {
        match self {
            Self::Host(error) | Self::Patch(patch::PatchError::Host(error)) if error.is_absence() => {
                ExitCode::from(3)
            }
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    match run(Line::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("lucos-agent: {failure}");
            failure.code()
        }
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    let kernel = Kernel::default();
    match verb {
        Verb::Run { port } => service::run(&port, &kernel)?,
        Verb::Apply { file } => {
            let number = patch::hand_in(&mut Host::open(&kernel)?, &file)?;
            println!("handed over as number {number}; `lucos-agent status` says what becomes of it");
        }
        Verb::Status => {
            // First what is known without a host.
            print!("{}", kernel.summary());
            print!("{}", Host::open(&kernel)?.status()?);
        }
    }
    Ok(())
}
