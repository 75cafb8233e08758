//! `lucos`: controls a running virtual machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    lucos_vmm::client::main()
}
