//! The command line of `lucos-patch`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::exit::{ExitStatus, Failure};
use crate::files;
use crate::inspect::{self, Inspect};
use crate::keygen::{self, Keygen};
use crate::make::{self, Make};
use crate::pack::{self, Pack};
use crate::sign::{self, Sign};
use crate::verify::{self, Verify};

/// Make, show and sign live patches
#[derive(Debug, Parser)]
#[command(name = "lucos-patch", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = help_end())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // As large as all others together.
    Make(Box<Make>),
    Pack(Pack),
    Inspect(Inspect),
    Keygen(Keygen),
    Sign(Sign),
    Verify(Verify),
    /// Print a script that completes the command line in SHELL
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn help_end() -> String {
    let mut text = "\
Examples:
  Make a patch of a fix of the kernel's source:
      lucos-patch make --kernel vmlinuz --headers linux-headers-6.1.0-47-amd64 --source linux-source-6.1 \\
          --patch fix.patch --name fix --summary 'ipc: no ids beyond the limit' --consistency quiescent
  Make a patch of a module, sign it, and see whether a host that trusts me.pub would take it:
      lucos-patch pack fix.toml fix.ko --kernel VMLINUZ --output fix.lup
      lucos-patch keygen me
      lucos-patch sign --key me.key fix.lup
      lucos-patch verify --key me.pub fix.lup
  Sign with minisign, on another machine perhaps:
      minisign -Sm fix.lup
      lucos-patch sign --attach fix.lup.minisig fix.lup

Exit codes:"
        .to_owned();
    for (status, meaning) in ExitStatus::TABLE {
        text = format!("{text}\n  {}  {meaning}", status.code());
    }
    text
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // clap answers --help and --version and refuses what it cannot read, with `ExitStatus::Usage`.
    let done = match Cli::parse().command {
        Command::Make(make) => make::run(&make),
        Command::Pack(pack) => pack::run(&pack),
        Command::Inspect(inspect) => inspect::run(&inspect),
        Command::Keygen(keygen) => keygen::run(&keygen),
        Command::Sign(sign) => sign::run(&sign),
        Command::Verify(verify) => verify::run(&verify),
        Command::Completions { shell } => completions(shell),
    };
    match done.and_then(|text| files::print(&text)) {
        Ok(()) => ExitStatus::Done.into(),
        Err(failure) => {
            // Nothing is left to tell anybody if standard error is closed.
            let _ = writeln!(io::stderr(), "lucos-patch: {failure}");
            failure.status().into()
        }
    }
}

fn completions(shell: Shell) -> Result<String, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lucos-patch", &mut script);
    String::from_utf8(script).map_err(Failure::failed)
}
