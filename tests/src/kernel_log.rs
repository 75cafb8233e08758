//! What a guest's kernel must not say.

/// Words by which Linux reports that something is wrong with it or with its machine.
const ALARMS: [&str; 14] = [
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "soft lockup",
    "hard LOCKUP",
    "rcu: INFO",
    "INFO: task",
    "general protection",
    "unable to handle",
    "Firmware Bug",
    "I/O error",
];

/// An alarm that says nothing about us.
#[derive(Debug)]
struct Known {
    /// What its line contains.
    text: &'static str,
    /// Why it may be there.
    #[expect(dead_code, reason = "for whoever reads or adds to the list")]
    reason: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    text: "arch/x86/kernel/fpu/xstate.c",
    reason: "QEMU's TCG, which makes the AMD host, gives XSAVE components other sizes in CPUID leaf 0xd than a \
             processor of that model does. The same kernel under Debian's QEMU with `-accel kvm -cpu host` in the \
             same host warns at the same line.",
}];

/// The last line of what the kernel prints after `WARNING:` (lib/bug.c, `print_oops_end_marker`).
const END_OF_WARNING: &str = "---[ end trace";

/// The lines of a console that raise an alarm.
pub(crate) fn alarms(console: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_known = false;
    for line in console.lines() {
        if KNOWN.iter().any(|known| line.contains(known.text)) && line.contains("WARNING:") {
            in_known = true;
        }
        if !in_known && ALARMS.iter().any(|alarm| line.contains(alarm)) {
            found.push(line);
        }
        in_known &= !line.contains(END_OF_WARNING);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_alarms_are_found() {
        let log = "[    1.0] Linux version 6.1\n[    2.0] BUG: soft lockup - CPU#0\n[    3.0] nvme0n1: ok\n";
        assert_eq!(alarms(log), ["[    2.0] BUG: soft lockup - CPU#0"]);
    }
    #[test]
    fn a_known_warning_ends_where_its_trace_ends() {
        let log = "[1] WARNING: CPU: 0 PID: 0 at arch/x86/kernel/fpu/xstate.c:606 x\n[1] Call Trace:\n\
                   [1] ---[ end trace 0 ]---\n[2] WARNING: CPU: 0 PID: 0 at mm/slab.c:1 y\n[2] Call Trace:\n";
        assert_eq!(alarms(log).len(), 2);
    }
}
