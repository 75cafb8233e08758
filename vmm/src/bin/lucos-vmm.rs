//! `lucos-vmm`: runs one virtual machine.

use std::process::ExitCode;

use lucos_vmm::cli::{self, ExitStatus, Failure};
use lucos_vmm::doctor;
use lucos_vmm::machine::{self, GuestExit, MachineError};

fn main() -> ExitCode {
    cli::main(|spec| {
        // A software KVM takes a stock kernel and then crawls: no call ever fails, so say it before.
        if !doctor::has_hardware_kvm()
            && let Some(why) = doctor::why_no_guest(&doctor::examine())
        {
            eprintln!("lucos-vmm: warning: {why}");
        }
        match machine::run(&spec) {
            Ok(exit) => Ok(status(exit)),
            Err(error) => Err(failure(error)),
        }
    })
}

fn status(exit: GuestExit) -> ExitStatus {
    match exit {
        GuestExit::PowerOff | GuestExit::Stopped => ExitStatus::Off,
        GuestExit::Panic | GuestExit::TripleFault => {
            // Not by the log: whatever --log-level says, an operator must learn why the guest is gone.
            eprintln!("lucos-vmm: {exit}");
            ExitStatus::GuestCrash
        }
        GuestExit::Signal(signal) => ExitStatus::Signal(u8::try_from(signal).unwrap_or(u8::MAX)),
    }
}

fn failure(error: MachineError) -> Failure {
    if error.is_refusal() {
        return Failure::refused(error);
    }
    // A host that cannot run stock guests explains most failures better than the failing call does.
    match doctor::why_no_guest(&doctor::examine()) {
        Some(why) => Failure::host(format!("{error}\n{why}")),
        None => Failure::host(error),
    }
}
