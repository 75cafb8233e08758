//! Argument vectors as shell text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Quotes `word` so that a POSIX shell reads back exactly these bytes, whatever they are.
pub(super) fn word(word: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            // Nothing is special between single quotes but the single quote itself.
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// Quotes all of `words` and joins them with spaces.
pub(super) fn words<S: AsRef<OsStr>>(words: &[S]) -> OsString {
    words.iter().map(|each| word(each.as_ref())).collect::<Vec<_>>().join(OsStr::new(" "))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_back_the_same_bytes() {
        let nasty: Vec<OsString> = [
            &b""[..],
            b"plain",
            b"two words",
            b"it's",
            b"''",
            b"$HOME `id` \\ \" ! * ?",
            b"line\nbreak\ttab",
            b"not utf-8 \xff\xfe",
            b"-n",
        ]
        .map(|bytes| OsString::from_vec(bytes.to_vec()))
        .to_vec();
        let mut script = OsString::from("printf '%s\\0' ");
        script.push(words(&nasty));
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let back: Vec<&[u8]> = output.stdout.split(|&byte| byte == 0).collect();
        let mut sent: Vec<&[u8]> = nasty.iter().map(|each| each.as_bytes()).collect();
        sent.push(b"");
        assert_eq!(back, sent);
    }
}
