//! What only the Intel host can show: VMX and EPT.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::deadlines::{INTEL_BOOT, REFUSAL};
use crate::harness::{Test, Tier};
use crate::vm::Vm;
use crate::{images, process};

pub(super) const TESTS: &[Test] = &[
    Test::new("intel::doctor_finds_vmx_and_ept", Tier::Intel, doctor),
    Test::new("intel::cloud_kernel_boots_and_powers_off", Tier::Intel, boot),
];

fn doctor() -> Result<()> {
    let mut doctor = Command::new(images::program("lucos-vmm")?);
    let output = process::run(doctor.args(["doctor", "--json"]), REFUSAL * 5)?;
    ensure!(output.code == 0, "doctor ended with {}: {}{}", output.code, output.out, output.err);
    let report: serde_json::Value = serde_json::from_str(&output.out)?;
    let finding = |name: &str| -> Result<String> {
        let found = report["findings"].as_array().into_iter().flatten().find(|found| found["name"] == name);
        found.map(ToString::to_string).with_context(|| format!("doctor says nothing of {name}: {report}"))
    };
    ensure!(finding("cpu")?.contains("with VMX"), "the processor: {}", finding("cpu")?);
    let paging = finding("nested-paging")?;
    ensure!(paging.contains("good") && paging.contains("EPT"), "nested paging: {paging}");
    Ok(())
}

fn boot() -> Result<()> {
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?;
    let mut vm = builder.cmdline("LUCOS_RUN=poweroff").start()?;
    let online = vm.init(INTEL_BOOT)?;
    ensure!(online == 1, "{online} vCPUs are online");
    vm.expect_exit(0, INTEL_BOOT)
}
