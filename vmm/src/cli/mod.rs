//! The command line of `lucos-vmm`.

mod exit;
mod flags;
mod log;
mod panic;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use exit::{ExitStatus, Failure};
pub use flags::MachineFlags;
pub use panic::end_on_panic;

use crate::config::MachineSpec;
use crate::{control, doctor};

const EXAMPLES: &str = "\
Examples:
  Can this host run a guest? What is missing, and what to do about it:
      lucos-vmm doctor
  Boot a kernel from a disk image, its console on this terminal:
      lucos-vmm --kernel bzImage --disk rootfs.img --cpus 2 --memory 1G
  The same without a terminal, with a socket to control it by:
      lucos-vmm --kernel bzImage --disk rootfs.img --serial file=console.log --api-socket vm.sock &
      lucos --api-socket vm.sock info
  Complete flags in this shell (bash; zsh, fish and others as well):
      source <(lucos-vmm completions bash)";

/// Run a virtual machine on KVM whose kernel can be patched while it runs
#[derive(Debug, Parser)]
#[command(name = "lucos-vmm", version, args_conflicts_with_subcommands = true)]
#[command(after_help = exit::help_with(EXAMPLES))]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    machine: MachineFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether this host can run stock guests, and what to do about what is missing
    ///
    /// Exits with 0 if it can, else with 1.
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a script that completes the command line in SHELL
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the OpenAPI description of the control API
    #[command(hide = true)]
    Openapi,
}

/// Does what the command line says; `run` runs a machine until it ends.
pub fn main(run: impl FnOnce(MachineSpec) -> Result<ExitStatus, Failure>) -> ExitCode {
    end_on_panic();
    // clap answers --help and --version and refuses what it cannot read, with `ExitStatus::Refused`.
    let cli = Cli::parse();
    let status = match cli.command {
        None => spec_of(cli.machine).and_then(|spec| {
            log::start(spec.log_level);
            run(spec)
        }),
        Some(Command::Doctor { json }) => doctor(json),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lucos-vmm", &mut script);
            print(&script)
        }
        Some(Command::Openapi) => {
            control::openapi_json().map_err(Failure::host).and_then(|text| print(text.as_bytes()))
        }
    };
    match status {
        Ok(status) => status.into(),
        Err(failure) => {
            report(&failure);
            failure.status().into()
        }
    }
}

fn spec_of(flags: MachineFlags) -> Result<MachineSpec, Failure> {
    flags.into_draft().and_then(crate::config::Draft::build).map_err(Failure::refused)
}

fn doctor(json: bool) -> Result<ExitStatus, Failure> {
    let report = doctor::examine();
    let text = if json {
        serde_json::to_string_pretty(&report).map_err(Failure::host)? + "\n"
    } else {
        report.to_string()
    };
    print(text.as_bytes())?;
    Ok(if report.can_run_stock_guests { ExitStatus::Off } else { ExitStatus::HostFailure })
}

fn print(text: &[u8]) -> Result<ExitStatus, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        // A reader that has seen enough, as in `| head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::host(error)),
        _ => Ok(ExitStatus::Off),
    }
}

/// Prints an error with its causes, leaving out a cause that the text above it tells already.
fn report(failure: &Failure) {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    // Nothing is left to tell anybody if standard error is closed.
    let _ = writeln!(io::stderr(), "lucos-vmm: {text}");
}
