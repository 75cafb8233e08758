//! Keys that are for the VMM and not for the guest: Ctrl-A and one more.

/// Ctrl-A, as in QEMU and minicom.
const PREFIX: u8 = 0x01;

/// What the operator asked the VMM for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Stop the VM now.
    Quit,
    /// Press the power button.
    PowerButton,
    /// Say what the keys are.
    Help,
}

pub(super) const HELP: &str = "\r\nlucos-vmm: Ctrl-A x  stop the VM now\r\n\
     \x20          Ctrl-A p  press the power button\r\n\
     \x20          Ctrl-A a  send Ctrl-A to the guest\r\n";

/// Finds the commands in a stream of keys.
#[derive(Debug, Default)]
pub(super) struct EscapeFilter {
    prefix_seen: bool,
}

impl EscapeFilter {
    /// Splits `keys` into what goes to the guest and what the VMM is asked for.
    pub(super) fn feed(&mut self, keys: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut guest, mut commands) = (Vec::new(), Vec::new());
        for &key in keys {
            if !self.prefix_seen {
                if key == PREFIX {
                    self.prefix_seen = true;
                } else {
                    guest.push(key);
                }
                continue;
            }
            self.prefix_seen = false;
            match key {
                b'x' => commands.push(Command::Quit),
                b'p' => commands.push(Command::PowerButton),
                b'h' | b'?' => commands.push(Command::Help),
                b'a' | PREFIX => guest.push(PREFIX),
                // No command: the guest gets both keys, as it would without us.
                other => guest.extend([PREFIX, other]),
            }
        }
        (guest, commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_across_reads() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.feed(b"ls\r\x01"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(filter.feed(b"xq"), (b"q".to_vec(), vec![Command::Quit]));
        assert_eq!(filter.feed(b"\x01a\x01\x01\x01e"), (b"\x01\x01\x01e".to_vec(), vec![]));
        assert_eq!(filter.feed(b"\x01p\x01h").1, vec![Command::PowerButton, Command::Help]);
    }
}
