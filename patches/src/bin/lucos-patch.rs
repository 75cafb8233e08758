//! `lucos-patch`: makes, shows and signs live patches.

use std::process::ExitCode;

fn main() -> ExitCode {
    lucos_patch::cli::main()
}
