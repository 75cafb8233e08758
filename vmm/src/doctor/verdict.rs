//! What the facts mean.

use super::facts::{CpuFacts, Facts, KvmFacts, KvmState, Virtualization, VmError, VmFacts};
use super::report::{Finding, Mark, Report};

/// The one version that KVM's interface has had since 2007 (api.rst, 4.1).
const API_VERSION: i32 = 12;
/// The default size of a guest's memory.
const MEMORY_WANTED: u64 = 512 << 20;
/// Each protected page can split a mapping in three; the kernel's default limit leaves room for 32000.
const MAPS_WANTED: u64 = 65530;

/// Collects findings.
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, name: &'static str, found: impl Into<String>) {
        self.0.push(Finding { name, mark: Mark::Good, found: found.into(), advice: None });
    }

    fn bad(&mut self, name: &'static str, mark: Mark, found: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding { name, mark, found: found.into(), advice: Some(advice.into()) });
    }

    /// A capability of KVM that is there or not.
    fn capability(&mut self, name: &'static str, there: bool, what: &str, missing: Mark, advice: &str) {
        if there {
            self.good(name, format!("{what}: yes"));
        } else {
            self.bad(name, missing, format!("{what}: no"), advice);
        }
    }
}

pub(super) fn judge(facts: &Facts) -> Report {
    let mut findings = Findings(Vec::new());
    findings.good("host-kernel", format!("Linux {}", facts.kernel_release));
    cpu(facts, &mut findings);
    let has_second_view = kvm(facts, &mut findings);
    surroundings(facts, &mut findings);
    let can_run_stock_guests = findings.0.iter().all(|finding| finding.mark != Mark::Broken);
    Report { can_run_stock_guests, has_second_view, findings: findings.0 }
}

fn cpu(facts: &Facts, findings: &mut Findings) {
    let CpuFacts { model, virtualization, is_guest } = &facts.cpu;
    match virtualization {
        Some(Virtualization::Vmx) => return findings.good("cpu", format!("{model}, with VMX")),
        Some(Virtualization::Svm) => return findings.good("cpu", format!("{model}, with SVM")),
        None => {}
    }
    let advice = if *is_guest {
        "this host is a virtual machine: use a physical one, or have nested virtualisation switched on for it"
    } else {
        "switch virtualisation (VT-x, AMD-V or SVM) on in the firmware's settings, or use another machine"
    };
    let mut found = format!("{model}, with neither VMX nor SVM");
    if matches!(facts.kvm, KvmState::Open(_)) {
        let software = match facts.kvm_modules.as_slice() {
            [] => "a software KVM".to_owned(),
            modules => format!("a software KVM ({})", modules.join(", ")),
        };
        found = format!("{found}; {software} offers /dev/kvm all the same, but it cannot run a stock kernel");
    }
    findings.bad("cpu", Mark::Broken, found, advice);
}

/// Judges KVM; says whether the second view is there.
fn kvm(facts: &Facts, findings: &mut Findings) -> bool {
    match &facts.kvm {
        KvmState::Missing => {
            let module = match facts.cpu.virtualization {
                Some(Virtualization::Vmx) => {
                    "load it with `sudo modprobe kvm_intel`; if that is refused, \
                                              switch VT-x on in the firmware's settings"
                }
                Some(Virtualization::Svm) => {
                    "load it with `sudo modprobe kvm_amd`; if that is refused, \
                                              switch SVM on in the firmware's settings"
                }
                None => "it needs a processor with VMX or SVM first",
            };
            findings.bad("kvm", Mark::Broken, "there is no /dev/kvm", module);
            false
        }
        KvmState::Denied { group } => {
            let user = &facts.user;
            let advice = match group {
                Some(group) => format!(
                    "add the user to its group with `sudo usermod -aG {group} {user}`, then log in again"
                ),
                None => format!(
                    "it is open to no group: give it to one with `sudo chgrp kvm /dev/kvm && \
                                 sudo chmod g+rw /dev/kvm`, with {user} in that group, or run as root"
                ),
            };
            findings.bad("kvm", Mark::Broken, format!("{user} may not open /dev/kvm"), advice);
            false
        }
        KvmState::Broken { error } => {
            let advice = "look at `sudo dmesg | grep -i kvm`";
            findings.bad("kvm", Mark::Broken, format!("/dev/kvm cannot be opened: {error}"), advice);
            false
        }
        KvmState::Open(kvm) => opened(facts, kvm, findings),
    }
}

fn opened(facts: &Facts, kvm: &KvmFacts, findings: &mut Findings) -> bool {
    if kvm.api_version == API_VERSION {
        findings.good("kvm", format!("/dev/kvm is open to {}, interface version {API_VERSION}", facts.user));
    } else {
        let found = format!("KVM has interface version {}, not {API_VERSION}", kvm.api_version);
        findings.bad("kvm", Mark::Broken, found, "use a host kernel from kernel.org or a distribution");
    }
    match facts.nested_paging {
        Some(true) => {
            let name = match facts.cpu.virtualization {
                Some(Virtualization::Vmx) => " (EPT)",
                Some(Virtualization::Svm) => " (NPT)",
                None => "",
            };
            let found = format!("KVM uses the processor's second-level page tables{name}");
            findings.good("nested-paging", found);
        }
        Some(false) => findings.bad(
            "nested-paging",
            Mark::Lacking,
            "KVM does not use the processor's second-level page tables (EPT or NPT); guests run slowly",
            "load its module without ept=0 or npt=0; a very old processor has none",
        ),
        None => findings.bad(
            "nested-paging",
            // No judgement of its own: the processor's line has said what matters.
            Mark::Lacking,
            "neither kvm_intel nor kvm_amd is loaded, so there is no EPT or NPT",
            "see the line on the processor",
        ),
    }
    match &kvm.vm {
        Ok(vm) => {
            let offered = capabilities(vm, findings);
            traps(facts, findings) && offered
        }
        Err(VmError { busy: true, .. }) => {
            let advice = "stop the other hypervisor (VirtualBox, VMware, ...) and unload its modules";
            findings.bad(
                "vm",
                Mark::Broken,
                "another hypervisor holds the processor's virtualisation",
                advice,
            );
            false
        }
        Err(VmError { error, .. }) => {
            let advice = "look at `sudo dmesg | grep -i kvm`";
            findings.bad("vm", Mark::Broken, format!("KVM makes no VM: {error}"), advice);
            false
        }
    }
}

fn capabilities(vm: &VmFacts, findings: &mut Findings) -> bool {
    let newer = "use a newer host kernel; Debian 12's and later have it";
    if vm.vcpu {
        findings.good("vm", format!("a VM and a vCPU could be made; up to {} vCPUs each", vm.max_vcpus));
    } else {
        let advice = "look at `sudo dmesg | grep -i kvm`";
        findings.bad("vm", Mark::Broken, "KVM makes a VM, but no vCPU", advice);
    }
    findings.capability("irqchip", vm.irqchip, "interrupt controllers in the kernel", Mark::Broken, newer);
    findings.capability(
        "immediate-exit",
        vm.immediate_exit,
        "vCPUs stopped without a race",
        Mark::Broken,
        newer,
    );
    findings.capability("eventfds", vm.eventfds, "interrupts and doorbells by eventfd", Mark::Broken, newer);
    let slower = "guests run with a coarser timer; use a newer host kernel";
    findings.capability("tsc-deadline", vm.tsc_deadline, "timer set by time stamp", Mark::Lacking, slower);
    let slower = "trapped writes take more system calls; use a newer host kernel";
    findings.capability("sync-regs", vm.sync_regs, "registers without system calls", Mark::Lacking, slower);
    let single = "patches that change data cannot trap every kind of write; use a host with VMX or SVM";
    findings.capability("single-step", vm.single_step, "single steps", Mark::Lacking, single);
    let quiet = "a step may have to be repeated when an interrupt comes; use Linux 5.16 or later on the host";
    findings.capability(
        "quiet-step",
        vm.step_without_interrupts,
        "single steps without interrupts",
        Mark::Lacking,
        quiet,
    );
    let second_view = vm.address_spaces >= 2 && vm.smm;
    if second_view {
        let found =
            format!("{} address spaces and SMM: each vCPU can step over a trap alone", vm.address_spaces);
        findings.good("second-view", found);
    } else {
        let (spaces, smm) = (vm.address_spaces, if vm.smm { "yes" } else { "no" });
        findings.bad(
            "second-view",
            Mark::Lacking,
            format!("address spaces: {spaces} (2 needed), SMM: {smm}; a trap will hold all vCPUs"),
            "use a host kernel with CONFIG_KVM_SMM=y, as distributions build it",
        );
    }
    second_view
}

/// Judges what was shown, not what KVM says of itself; says whether the second view works.
fn traps(facts: &Facts, findings: &mut Findings) -> bool {
    match &facts.traps {
        Ok(means) => findings.good("traps", format!("shown on a tiny guest: a trapped access is carried out {means}")),
        Err(why) => findings.bad(
            "traps",
            Mark::Lacking,
            why.clone(),
            "guests run, but no patch that changes data can be applied; use a host with VMX or SVM and Debian 12's kernel or later",
        ),
    }
    facts.traps.as_ref().is_ok_and(|means| means.second_view)
}

/// What is not KVM.
fn surroundings(facts: &Facts, findings: &mut Findings) {
    match &facts.collapse {
        Ok(()) => findings.good("huge-pages", "guest memory can be made of huge pages (MADV_COLLAPSE)"),
        Err(error) => findings.bad(
            "huge-pages",
            Mark::Lacking,
            format!("MADV_COLLAPSE failed ({error}): guest memory will be made of small pages, and slower"),
            "use Linux 6.1 or later, built with CONFIG_TRANSPARENT_HUGEPAGE, on the host, with 2 MiB free in one piece",
        ),
    }
    match &facts.tun {
        Ok(()) => findings.good("network", "/dev/net/tun can be opened, so --net has its taps"),
        Err(error) => findings.bad(
            "network",
            Mark::Lacking,
            format!("/dev/net/tun cannot be opened ({error}); guests run without --net"),
            "load it with `sudo modprobe tun`, and see that its mode is 0666",
        ),
    }
    let mib = |bytes: u64| bytes >> 20;
    match facts.memory_available {
        Some(bytes) if bytes >= MEMORY_WANTED => {
            findings.good("memory", format!("{} MiB available", mib(bytes)));
        }
        Some(bytes) => {
            let found = format!("{} MiB available, less than a guest's default of 512 MiB", mib(bytes));
            findings.bad("memory", Mark::Lacking, found, "free some, or give guests less with --memory");
        }
        None => findings.bad(
            "memory",
            Mark::Lacking,
            "/proc/meminfo does not say how much memory is available",
            "see that /proc is mounted",
        ),
    }
    let raise = format!("raise it with `sudo sysctl vm.max_map_count={MAPS_WANTED}`");
    match facts.max_map_count {
        Some(count) if count >= MAPS_WANTED => {
            findings.good("mappings", format!("vm.max_map_count is {count}"));
        }
        Some(count) => {
            let found = format!("vm.max_map_count is {count}: few pages of data can be protected at once");
            findings.bad("mappings", Mark::Lacking, found, raise);
        }
        None => findings.bad("mappings", Mark::Lacking, "vm.max_map_count cannot be read", raise),
    }
}
