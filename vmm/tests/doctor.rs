//! What the doctor says: of this host, against an independent reading of /proc and /sys, and of hosts that
//! are not at hand.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::Command;

use lucos_vmm::doctor::{
    CpuFacts, Facts, KvmFacts, KvmState, Mark, Report, Virtualization, VmError, VmFacts, examine, judge,
    observe, why_no_guest,
};
use lucos_vmm::trap::Means;
use serde_json::Value;

fn healthy() -> Facts {
    Facts {
        kernel_release: "6.1.0-50-amd64".into(),
        cpu: CpuFacts { model: "EPYC".into(), virtualization: Some(Virtualization::Svm), is_guest: false },
        user: "ann".into(),
        kvm_modules: vec!["kvm_amd".into()],
        nested_paging: Some(true),
        kvm: KvmState::Open(KvmFacts { api_version: 12, vm: Ok(able()) }),
        traps: Ok(Means { second_view: true, blocks_interrupts: true }),
        collapse: Ok(()),
        tun: Ok(()),
        memory_available: Some(4 << 30),
        max_map_count: Some(65530),
    }
}

fn able() -> VmFacts {
    VmFacts {
        vcpu: true,
        max_vcpus: 1024,
        irqchip: true,
        immediate_exit: true,
        eventfds: true,
        tsc_deadline: true,
        sync_regs: true,
        address_spaces: 2,
        smm: true,
        single_step: true,
        step_without_interrupts: true,
    }
}

fn mark(report: &Report, name: &str) -> Mark {
    report.findings.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("no {name}")).mark
}

#[test]
fn a_healthy_host_has_nothing_to_do() {
    let report = judge(&healthy());
    assert!(report.can_run_stock_guests && report.has_second_view, "{report}");
    assert!(report.findings.iter().all(|finding| finding.mark == Mark::Good && finding.advice.is_none()));
    assert_eq!(why_no_guest(&report), None);
}

#[test]
fn each_thing_that_keeps_guests_from_running_is_named_with_its_remedy() {
    type Change = fn(&mut Facts);
    let table: &[(&str, Change, &str)] = &[
        ("kvm", |facts| facts.kvm = KvmState::Missing, "modprobe kvm_amd"),
        (
            "kvm",
            |facts| {
                facts.kvm = KvmState::Missing;
                facts.cpu.virtualization = Some(Virtualization::Vmx);
            },
            "modprobe kvm_intel",
        ),
        ("kvm", |facts| facts.kvm = KvmState::Denied { group: Some("kvm".into()) }, "usermod -aG kvm ann"),
        ("kvm", |facts| facts.kvm = KvmState::Denied { group: None }, "chgrp kvm"),
        ("kvm", |facts| facts.kvm = KvmState::Broken { error: "I/O error".into() }, "dmesg"),
        ("kvm", |facts| facts.kvm = KvmState::Open(KvmFacts { api_version: 11, vm: Ok(able()) }), "kernel"),
        (
            "vm",
            |facts| {
                let vm = Err(VmError { busy: true, error: "busy".into() });
                facts.kvm = KvmState::Open(KvmFacts { api_version: 12, vm });
            },
            "VirtualBox",
        ),
        ("cpu", |facts| facts.cpu.virtualization = None, "firmware"),
        (
            "cpu",
            |facts| {
                facts.cpu = CpuFacts { model: "EPYC".into(), virtualization: None, is_guest: true };
                facts.kvm_modules = vec!["kvm_pvm".into()];
            },
            "software KVM (kvm_pvm)",
        ),
        (
            "irqchip",
            |facts| {
                let vm = Ok(VmFacts { irqchip: false, ..able() });
                facts.kvm = KvmState::Open(KvmFacts { api_version: 12, vm });
            },
            "newer host kernel",
        ),
    ];
    for (name, change, piece) in table {
        let mut facts = healthy();
        change(&mut facts);
        let report = judge(&facts);
        assert!(!report.can_run_stock_guests, "{name}: {report}");
        assert_eq!(mark(&report, name), Mark::Broken, "{report}");
        let why = why_no_guest(&report).unwrap();
        assert!(why.starts_with("this host cannot run stock guests: ") && why.contains(piece), "{why}");
        assert!(report.to_string().ends_with("This host cannot run stock guests.\n"));
    }
}

#[test]
fn what_is_only_lacking_keeps_no_guest_from_running() {
    type Change = fn(&mut Facts);
    let vm = |vm: VmFacts| KvmState::Open(KvmFacts { api_version: 12, vm: Ok(vm) });
    let table: &[(&str, Change)] = &[
        ("traps", |facts| facts.traps = Err("a trapped access cannot be carried out".into())),
        ("nested-paging", |facts| facts.nested_paging = Some(false)),
        ("huge-pages", |facts| facts.collapse = Err("Invalid argument".into())),
        ("network", |facts| facts.tun = Err("No such file".into())),
        ("memory", |facts| facts.memory_available = Some(1 << 20)),
        ("mappings", |facts| facts.max_map_count = Some(100)),
    ];
    for (name, change) in table {
        let mut facts = healthy();
        change(&mut facts);
        let report = judge(&facts);
        assert!(report.can_run_stock_guests && mark(&report, name) == Mark::Lacking, "{report}");
    }
    for capabilities in [VmFacts { smm: false, ..able() }, VmFacts { address_spaces: 1, ..able() }] {
        let report = judge(&Facts { kvm: vm(capabilities), ..healthy() });
        assert!(report.can_run_stock_guests && !report.has_second_view, "{report}");
        assert_eq!(mark(&report, "second-view"), Mark::Lacking);
    }
    // What KVM says that it has is one thing, what was seen to work another.
    let held = Ok(Means { second_view: false, blocks_interrupts: true });
    let report = judge(&Facts { traps: held, ..healthy() });
    assert!(report.can_run_stock_guests && !report.has_second_view, "{report}");
    assert!(report.to_string().contains("a trapped access is carried out with all other vCPUs held"));
}

#[test]
fn what_it_says_of_this_host_is_true() {
    let facts = observe();
    let uname = Command::new("uname").arg("-r").output().unwrap();
    assert_eq!(facts.kernel_release, String::from_utf8(uname.stdout).unwrap().trim());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let words: Vec<&str> = cpuinfo.split_whitespace().collect();
    let hardware = words.contains(&"vmx") || words.contains(&"svm");
    assert_eq!(facts.cpu.virtualization.is_some(), hardware);
    assert!(cpuinfo.contains(&facts.cpu.model));
    let user = Command::new("id").arg("-un").output().unwrap();
    assert_eq!(facts.user, String::from_utf8(user.stdout).unwrap().trim());
    assert_eq!(matches!(facts.kvm, KvmState::Missing), !Path::new("/dev/kvm").exists());
    for module in &facts.kvm_modules {
        assert!(Path::new("/sys/module").join(module).is_dir());
    }
    assert_eq!(
        facts.kvm_modules.iter().any(|name| name == "kvm_amd"),
        Path::new("/sys/module/kvm_amd").exists()
    );
    let sysctl = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    assert_eq!(facts.max_map_count, Some(sysctl.trim().parse().unwrap()));
    assert_eq!(facts.tun.is_ok(), fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok());
    // The verdict follows the hardware: whatever /dev/kvm offers, without VMX or SVM nothing boots.
    let report = examine();
    assert!(hardware || !report.can_run_stock_guests, "{report}");
    assert_eq!(mark(&report, "cpu") == Mark::Good, hardware);
    assert_eq!(why_no_guest(&report).is_none(), report.can_run_stock_guests);
}

#[test]
fn the_command_says_it_in_words_in_json_and_by_its_exit_code() {
    let doctor = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_lucos-vmm")).arg("doctor").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let expected = examine();
    let code = Some(i32::from(!expected.can_run_stock_guests));
    let (said, json) = doctor(&["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((said, json["can_run_stock_guests"].as_bool()), (code, Some(expected.can_run_stock_guests)));
    let (said, words) = doctor(&[]);
    assert_eq!(said, code);
    for finding in &expected.findings {
        assert!(words.contains(finding.name), "{words}");
    }
}
