//! Whether KVM uses the processor's second-level page tables, EPT or NPT.

use std::fs;

/// As KVM's modules say (arch/x86/kvm/vmx/vmx.c and svm/svm.c, parameters `ept` and `npt`); `None` where neither is loaded, as with a
/// KVM that is made of software.
pub fn nested_paging() -> Option<bool> {
    let parameters = ["/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt"];
    let value = parameters.iter().find_map(|path| fs::read_to_string(path).ok())?;
    Some(matches!(value.trim(), "Y" | "1"))
}
