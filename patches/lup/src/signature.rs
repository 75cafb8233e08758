//! Signatures and public keys, in the formats of minisign.
//!
//! Both are lines of text (<https://jedisct1.github.io/minisign/>, "Signature format" and "Public key format"). Only
//! signatures of a file's hash are taken: it is what minisign 0.11 makes without the option -l.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Serialize, Serializer};

use crate::limits::{PUBLIC_KEY_BYTES, SIGNATURE_BYTES};

/// The first line of each signature in a `.lup` file. minisign signs everything but this line, so there it has one text only:
/// no byte of a signed file can be changed unnoticed.
const FIRST_LINE: &str = "untrusted comment: signature of a lucos patch";
const FIRST_BEGINS: &str = "untrusted comment:";
const THIRD_BEGINS: &str = "trusted comment: ";

/// "Ed": what a public key is for, and the signature of a file itself.
const PLAIN: [u8; 2] = *b"Ed";
/// "ED": the signature of a file's hash by BLAKE2b-512.
const HASHED: [u8; 2] = *b"ED";

/// Why text is no signature that is taken here, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Longer than any.
    #[error(
        "the signature has {len} bytes, and none has more than {SIGNATURE_BYTES}; is it a .minisig file?"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A line is not what it should be.
    #[error("line {line} of the signature {why}; make it again with `minisign -S` or `lucos-patch sign`")]
    Line {
        /// Which of the four.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is over the file and not over its hash.
    #[error(
        "line 2 of the signature says that the file itself is signed and not its hash; sign with `minisign -S` of version 0.11 \
         or newer, without -l"
    )]
    NotHashed,
    /// It is not written as `.lup` files have it.
    #[error(
        "the signature differs at byte {at:#x} from how a .lup file has it; the file is damaged, or was not signed by \
         `lucos-patch sign`: do that"
    )]
    NotAsWritten {
        /// Where, from the signature's beginning.
        at: usize,
    },
}

/// Why text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Longer than any.
    #[error("the public key has {len} bytes, and none has more than {PUBLIC_KEY_BYTES}; name the .pub file")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A line is not what it should be.
    #[error("line {line} of the public key {why}; name a .pub file of `minisign -G` or `lucos-patch keygen`")]
    Line {
        /// Which of the two.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Why a patch is not taken for signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is no signature.
    #[error("the patch is not signed; sign it with `lucos-patch sign`, or get a signed one")]
    Unsigned,
    /// The key that it names is not among those that count.
    #[error("the patch is signed by key {found}, which is not trusted here; trusted: {known}")]
    UnknownKey {
        /// The key that the signature names.
        found: KeyId,
        /// Those that count, for people.
        known: String,
    },
    /// Something was changed after it was signed, or somebody else has signed.
    #[error(
        "the signature by key {key} does not fit the patch: one of both was changed, or somebody else has made it; do not use \
         this file"
    )]
    Wrong {
        /// The key that the signature names.
        key: KeyId,
    },
}

/// A key's number, by which people and signatures name it. Anybody can make a key with the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    /// As minisign prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A signature. It is well-formed; whether it is right is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    text: String,
    key: KeyId,
    comment: String,
}

impl Signature {
    /// Reads what minisign writes, a `.minisig` file. Its first line, which nobody signs, is not kept.
    pub fn read(file: &[u8]) -> Result<Self, SignatureError> {
        if file.len() > SIGNATURE_BYTES {
            return Err(SignatureError::TooLong { len: file.len() });
        }
        let text = str::from_utf8(file).map_err(|error| SignatureError::Line {
            line: line_at(file, error.valid_up_to()),
            why: "is no text",
        })?;
        let mut lines = text.lines();
        let mut next = |line, why| lines.next().ok_or(SignatureError::Line { line, why });
        let first = next(1, "is missing")?;
        let second = next(2, "is missing; it has the signature")?;
        let third = next(3, "is missing; it has the trusted comment")?;
        let fourth = next(4, "is missing; it has the signature of the comment")?;
        let wrong = |line, why| Err(SignatureError::Line { line, why });
        if !first.starts_with(FIRST_BEGINS) {
            return wrong(1, "does not begin with `untrusted comment:`");
        }
        let Some(signature) = decode::<74>(second) else { return wrong(2, "is not 74 bytes in base64") };
        let (algorithm, rest) = signature.split_at(2);
        let key = first_bytes(rest);
        match algorithm {
            _ if algorithm == HASHED => {}
            _ if algorithm == PLAIN => return Err(SignatureError::NotHashed),
            _ => return wrong(2, "is of an unknown algorithm"),
        }
        let Some(comment) = third.strip_prefix(THIRD_BEGINS) else {
            return wrong(3, "does not begin with `trusted comment: `");
        };
        // It is shown on terminals; minisign's own comment has tabs.
        if comment.contains(|character: char| character.is_control() && character != '\t') {
            return wrong(3, "has control characters");
        }
        if decode::<64>(fourth).is_none() {
            return wrong(4, "is not 64 bytes in base64");
        }
        if lines.next().is_some() {
            return wrong(5, "is one too many");
        }
        let text = format!("{FIRST_LINE}\n{second}\n{third}\n{fourth}\n");
        if text.len() > SIGNATURE_BYTES {
            return Err(SignatureError::TooLong { len: text.len() });
        }
        Ok(Self { text, key, comment: comment.to_owned() })
    }

    /// Reads what [`Self::text`] has returned, and nothing else.
    pub(crate) fn read_as_written(bytes: &[u8]) -> Result<Self, SignatureError> {
        let signature = Self::read(bytes)?;
        let text = signature.text.as_bytes();
        if text == bytes {
            return Ok(signature);
        }
        let same = text.iter().zip(bytes).take_while(|(one, other)| one == other).count();
        Err(SignatureError::NotAsWritten { at: same })
    }

    /// The four lines, as they are in a `.lup` file. They are a `.minisig` file, too.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The key that it says it was made with.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// What whoever signed has said of the file. It is signed as well: without [`Self::verify`] it is nobody's word.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// Which of `keys` has signed exactly `body` and the comment.
    pub fn verify<'k>(&self, body: &[u8], keys: &'k [PublicKey]) -> Result<&'k PublicKey, VerifyError> {
        let mut named = keys.iter().filter(|key| key.id == self.key).peekable();
        if named.peek().is_none() {
            let ids: Vec<String> = keys.iter().map(|key| key.id.to_string()).collect();
            let known = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            return Err(VerifyError::UnknownKey { found: self.key, known });
        }
        let wrong = || VerifyError::Wrong { key: self.key };
        let signature = minisign_verify::Signature::decode(&self.text).map_err(|_| wrong())?;
        let right = |key: &&PublicKey| key.key.verify(body, &signature, false).is_ok();
        named.find(right).ok_or_else(wrong)
    }
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    key: minisign_verify::PublicKey,
}

impl PublicKey {
    /// Reads a `.pub` file.
    pub fn read(file: &[u8]) -> Result<Self, KeyError> {
        if file.len() > PUBLIC_KEY_BYTES {
            return Err(KeyError::TooLong { len: file.len() });
        }
        let wrong = |line, why| Err(KeyError::Line { line, why });
        let Ok(text) = str::from_utf8(file) else { return wrong(1, "is no text") };
        let mut lines = text.lines();
        if !lines.next().is_some_and(|first| first.starts_with(FIRST_BEGINS)) {
            return wrong(1, "does not begin with `untrusted comment:`");
        }
        let Some(second) = lines.next() else { return wrong(2, "is missing; it has the key") };
        let Some(bytes) = decode::<42>(second) else {
            return wrong(2, "is not 42 bytes in base64; is it a secret key?");
        };
        if bytes[..2] != PLAIN {
            return wrong(2, "is of an unknown algorithm");
        }
        if lines.next().is_some() {
            return wrong(3, "is one too many");
        }
        let Ok(key) = minisign_verify::PublicKey::from_base64(second) else {
            return wrong(2, "is no key");
        };
        Ok(Self { id: first_bytes(&bytes[2..]), key })
    }

    /// Its number.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// Exactly `N` bytes of base64, of which there is one form only.
fn decode<const N: usize>(line: &str) -> Option<[u8; N]> {
    BASE64.decode(line).ok()?.try_into().ok()
}

/// The key's number at the beginning of `bytes`, of which there are more.
fn first_bytes(bytes: &[u8]) -> KeyId {
    let mut id = [0; 8];
    id.copy_from_slice(&bytes[..8]);
    KeyId(id)
}

/// The number of the line that byte `at` is in.
fn line_at(text: &[u8], at: usize) -> usize {
    text[..at].split(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// minisign 0.11 has made these: a public key, and the signature of a file `test` that has the four letters in it, with
    /// `minisign -S` and with `minisign -S -l`.
    const PUBLIC: &str = "untrusted comment: minisign public key BE99A5B79E0F95C3\n\
        RWTDlQ+et6WZvp9Q4EQ035SZwyfJq7lZ7tx0sIRlsTMaR7q/fLs9Fk9S\n";
    const SIGNED: &str = "untrusted comment: signature from minisign secret key\n\
        RUTDlQ+et6WZvp6Djh+UwdDNBGYqaqglrWlyUH2iHFyH7Dqduwbo2Ga2iCZxL4ln3zlZK3TWcD51gKvs/5B3aIzGDe+0R1YAwQo=\n\
        trusted comment: timestamp:1795753697\tfile:test\thashed\n\
        uZt5MA2QUTEkfybr5vxTIzl+QVEn7JRuRhIZkUSnpr1B50itAey/9PfwkCaXs/ZFF/FgtVakyw1QhXNNrI/WDg==\n";
    const NOT_HASHED: &str = "untrusted comment: signature from minisign secret key\n\
        RWTDlQ+et6WZvmOK7739j9mvlzk6hxHmgz96fy+NXb9J6rQb2+oZbve6mGJ1uPHxLgOt4wWl+UlHoX6+Y8vNg1bdW6iCvrYgUAE=\n\
        trusted comment: timestamp:1795753697\tfile:test\n\
        dgYcUnmx8TsnTlfV+4rHvCObLyRzNTv8gxj7OlRimtuur+kB5lKZgPtTwqbZZENTiTx3pOE+J3AvYy6hGVP2CQ==\n";

    #[test]
    fn what_minisign_has_signed_is_taken() {
        let key = PublicKey::read(PUBLIC.as_bytes()).unwrap();
        assert_eq!(key.id().to_string(), "BE99A5B79E0F95C3");
        let signature = Signature::read(SIGNED.as_bytes()).unwrap();
        assert_eq!(
            (signature.key(), signature.comment()),
            (key.id(), "timestamp:1795753697\tfile:test\thashed")
        );
        let keys = [key];
        assert_eq!(signature.verify(b"test", &keys), Ok(&keys[0]));
        assert_eq!(signature.verify(b"Test", &keys), Err(VerifyError::Wrong { key: keys[0].id() }));
        let unknown = VerifyError::UnknownKey { found: keys[0].id(), known: "none".into() };
        assert_eq!(signature.verify(b"test", &[]), Err(unknown));
    }

    #[test]
    fn line_ends_of_other_systems_and_any_first_line_are_taken_and_not_kept() {
        let signature = Signature::read(SIGNED.as_bytes()).unwrap();
        for other in [
            SIGNED.replace('\n', "\r\n"),
            SIGNED.trim_end().to_owned(),
            SIGNED.replace("from minisign secret key", "of mine"),
        ] {
            assert_eq!(Signature::read(other.as_bytes()), Ok(signature.clone()));
            assert!(matches!(
                Signature::read_as_written(other.as_bytes()),
                Err(SignatureError::NotAsWritten { .. })
            ));
        }
        assert_eq!(Signature::read_as_written(signature.text().as_bytes()), Ok(signature));
    }

    #[test]
    fn each_wrong_line_is_named() {
        let line = |text: &str| match Signature::read(text.as_bytes()) {
            Err(SignatureError::Line { line, .. }) => line,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(line(""), 1);
        assert_eq!(line(&SIGNED.replace("untrusted ", "")), 1);
        for cut in 1..4 {
            let lines: Vec<&str> = SIGNED.lines().take(cut).collect();
            assert_eq!(line(&lines.join("\n")), cut + 1);
        }
        assert_eq!(line(&SIGNED.replace("RUTD", "RUT")), 2);
        assert_eq!(line(&SIGNED.replace("RUTD", "AATD")), 2);
        // The last two bits of this letter are no part of the 74 bytes.
        assert_eq!(line(&SIGNED.replace("AwQo=", "AwQp=")), 2);
        assert_eq!(line(&SIGNED.replace("\ntrusted", "\nTrusted")), 3);
        assert_eq!(line(&SIGNED.replace("file:", "\x1b[2J")), 3);
        assert_eq!(line(&SIGNED.replace("/WDg==", "/WDh==")), 4);
        assert_eq!(line(&format!("{SIGNED}\n")), 5);
        let no_text = [SIGNED.lines().next().unwrap().as_bytes(), b"\n\xff"].concat();
        assert!(matches!(Signature::read(&no_text), Err(SignatureError::Line { line: 2, .. })));
        let long = SIGNED.replace("file:test", &"x".repeat(SIGNATURE_BYTES));
        assert!(matches!(Signature::read(long.as_bytes()), Err(SignatureError::TooLong { .. })));
    }

    #[test]
    fn a_signature_of_a_file_itself_is_refused_with_the_reason() {
        assert_eq!(Signature::read(NOT_HASHED.as_bytes()), Err(SignatureError::NotHashed));
    }

    #[test]
    fn each_wrong_line_of_a_key_is_named() {
        let line = |text: &str| match PublicKey::read(text.as_bytes()) {
            Err(KeyError::Line { line, .. }) => line,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(line(""), 1);
        assert_eq!(line(PUBLIC.lines().nth(1).unwrap()), 1);
        assert_eq!(line(PUBLIC.lines().next().unwrap()), 2);
        assert_eq!(line(&PUBLIC.replace("RWT", "RUT")), 2);
        assert_eq!(line(&PUBLIC.replace("k9S", "k9")), 2);
        assert_eq!(line(&format!("{PUBLIC}x")), 3);
        assert_eq!(PublicKey::read(&[b'x'; 4096]), Err(KeyError::TooLong { len: 4096 }));
    }
}
