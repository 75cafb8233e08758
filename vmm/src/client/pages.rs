//! The pages that `lucos arm` and `lucos disarm` name.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use crate::control::model::{ArmRequest, BadPages};
use crate::trap::MOST_PAGES;

/// Those of the command line, and those in a file. What is too much for the VMM is refused here: it need not read what it refuses,
/// and then its answer may be lost.
pub(super) fn named(pages: &[String], file: Option<&Path>) -> Result<Vec<String>, String> {
    let mut pages = pages.to_vec();
    if let Some(file) = file {
        pages.append(&mut read(file)?);
    }
    if pages.len() > MOST_PAGES {
        return Err(format!("{}; name fewer pages", BadPages::TooMany { named: pages.len() }));
    }
    Ok(pages)
}

/// Addresses in a file, one in a line; empty lines are skipped. An error names the file, and the line if one is bad.
fn read(path: &Path) -> Result<Vec<String>, String> {
    let (name, text) = if path == Path::new("-") {
        ("standard input".to_owned(), limited(io::stdin().lock()))
    } else {
        (path.display().to_string(), File::open(path).and_then(limited))
    };
    let text = text.map_err(|error| {
        format!(
            "cannot read pages from {name}: {error}; name a text file with one hexadecimal address in a line"
        )
    })?;
    let mut pages = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() {
            continue;
        }
        if ArmRequest::address(line).is_none() {
            return Err(format!(
                "line {number} of {name}: {line:?} is no address; give one hexadecimal number in a line, such as 0x1c05000"
            ));
        }
        pages.push(line.to_owned());
    }
    if pages.is_empty() {
        return Err(format!("no page is named in {name}; write one hexadecimal address in a line"));
    }
    Ok(pages)
}

/// One that the command line names.
pub(super) fn address(text: &str) -> Result<String, String> {
    match ArmRequest::address(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("it is no address; give a hexadecimal number, such as 0x1c05000".to_owned()),
    }
}

/// Reads no more than the addresses of all pages that can be watched have.
fn limited(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(ArmRequest::BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    if text.len() > ArmRequest::BYTES_MAX {
        let most = ArmRequest::BYTES_MAX;
        return Err(io::Error::other(format!("it has more than the {most} bytes that such a list can have")));
    }
    Ok(text)
}

/// A request with such pages as it is sent. One that is too long is refused for the same reason.
pub(super) fn body(request: &impl Serialize) -> Result<Vec<u8>, String> {
    let body = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    if body.len() > ArmRequest::BYTES_MAX {
        return Err("the addresses are too long; give hexadecimal numbers, such as 0x1c05000".to_owned());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    #[test]
    fn each_line_is_an_address_or_named() {
        let good = file(b"0x1000\n\n  2000 \r\n0x3000");
        assert_eq!(read(good.path()).unwrap(), ["0x1000", "2000", "0x3000"]);
        let bad = file(b"0x1000\n\n0x2000 0x3000\n");
        let error = read(bad.path()).unwrap_err();
        assert!(
            error.contains("line 3 of /") && error.contains("\"0x2000 0x3000\" is no address"),
            "{error}"
        );
        for (path, what) in [("/nowhere", "No such file"), ("/dev/zero", "more than the")] {
            let error = read(Path::new(path)).unwrap_err();
            assert!(error.contains(path) && error.contains(what), "{error}");
        }
        assert!(read(file(b"\xff\n").path()).is_err());
        let empty = file(b"\n \n");
        let error = read(empty.path()).unwrap_err();
        assert!(error.contains("no page is named in /"), "{error}");
    }
}
