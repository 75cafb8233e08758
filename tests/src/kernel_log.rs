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

/// A line that sounds like an alarm and says nothing about us.
#[derive(Debug)]
struct Known {
    /// What the line contains.
    text: &'static str,
    /// Why it may be there.
    #[expect(dead_code, reason = "for whoever reads or adds to the list")]
    reason: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    text: "RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable",
    reason: "A property of the processor model, which Linux states on a Skylake without IBRS in its hypervisor \
             (arch/x86/kernel/cpu/bugs.c, `retbleed_select_mitigation`): Bochs' model is one, and so are machines \
             that people have.",
}];

/// The lines of a console that raise an alarm.
pub(crate) fn alarms(console: &str) -> Vec<&str> {
    let is_alarm = |line: &&str| ALARMS.iter().any(|alarm| line.contains(alarm));
    let is_known = |line: &&str| KNOWN.iter().any(|known| line.contains(known.text));
    console.lines().filter(|line| is_alarm(line) && !is_known(line)).collect()
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
    fn a_known_line_hides_no_other() {
        let log = "[1] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks\n\
                   [2] WARNING: CPU: 0 PID: 0 at mm/slab.c:1 y\n[2] Call Trace:\n";
        assert_eq!(alarms(log).len(), 2);
    }
}
