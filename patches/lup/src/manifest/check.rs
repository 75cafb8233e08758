//! The rules of a manifest that types do not express.

use std::collections::HashSet;
use std::hash::Hash;

use super::{Consistency, Function, Hole, Import, Manifest, ManifestError, Policy, Symbol};
use crate::limits;

/// The start of a text that breaks a rule, in an error; it may have any length.
const SHOWN_CHARS: usize = 60;

impl Manifest {
    /// Holds the manifest to every rule that needs nothing but itself.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        line("summary", &self.summary, limits::SUMMARY_CHARS, "1 to 200 characters, in one line")?;
        self.check_fixes()?;
        self.check_kernels()?;
        self.check_requires()?;
        module_name("module.name", &self.module.name)?;
        self.check_symbols()?;
        self.check_functions()?;
        self.check_modules()?;
        policy(&self.policy)
    }

    fn check_fixes(&self) -> Result<(), ManifestError> {
        count("fixes", self.fixes.len(), 0, limits::FIXES)?;
        for (id, field) in named("fixes", &self.fixes) {
            rule(&field, id, is_cve(id), "a CVE id, as in CVE-2026-52923")?;
        }
        once(named("fixes", &self.fixes), Clone::clone)
    }

    fn check_kernels(&self) -> Result<(), ManifestError> {
        count("kernels", self.kernels.len(), 1, limits::KERNELS)?;
        for (kernel, field) in named("kernels", &self.kernels) {
            let good = has_chars(&kernel.release, limits::RELEASE_CHARS, |byte| byte.is_ascii_graphic());
            rule(&format!("{field}.release"), &kernel.release, good, "what `uname -r` prints")?;
        }
        let what = |kernel: &super::Kernel| format!("{} with build-id {}", kernel.release, kernel.build_id);
        once(named("kernels", &self.kernels), what)
    }

    fn check_requires(&self) -> Result<(), ManifestError> {
        count("requires", self.requires.len(), 0, limits::REQUIRES)?;
        for (name, field) in named("requires", &self.requires) {
            if *name == self.name {
                return Err(unfit(field, "is this patch itself; take it out"));
            }
        }
        once(named("requires", &self.requires), ToString::to_string)
    }

    fn check_symbols(&self) -> Result<(), ManifestError> {
        let symbols = &self.module.symbols;
        count("module.symbols", symbols.len(), 0, limits::SYMBOLS)?;
        for (Import { name, source }, field) in named("module.symbols", symbols) {
            symbol_name(&format!("{field}.name"), name)?;
            symbol_name(&format!("{field}.source.name"), &source.name)?;
            object(&format!("{field}.source.object"), source.object.as_deref())?;
        }
        let names: Vec<&String> = symbols.iter().map(|import| &import.name).collect();
        once(named("module.symbols", &names), ToString::to_string)
    }

    fn check_functions(&self) -> Result<(), ManifestError> {
        count("functions", self.functions.len(), 1, limits::FUNCTIONS)?;
        for (function, field) in named("functions", &self.functions) {
            symbol_name(&format!("{field}.name"), &function.name)?;
            symbol_name(&format!("{field}.new"), &function.new)?;
            object(&format!("{field}.object"), function.object.as_deref())?;
            code(&field, function)?;
        }
        let originals: Vec<Symbol> = self.functions.iter().map(Function::symbol).collect();
        once(named("functions", &originals), |original| original.name.clone())
    }

    /// A module may be unloaded at any time, and nothing of it is called any more then. New code that refers to it must be called
    /// by nobody else.
    fn check_modules(&self) -> Result<(), ManifestError> {
        for (Import { source, .. }, field) in named("module.symbols", &self.module.symbols) {
            let Some(object) = &source.object else { continue };
            if !self.functions.iter().all(|function| function.object.as_ref() == Some(object)) {
                let why = format!(
                    "is {object}, which may be unloaded while functions elsewhere are replaced; make a patch of functions of {object} \
                     alone"
                );
                return Err(unfit(format!("{field}.source.object"), why));
            }
        }
        Ok(())
    }
}

fn code(field: &str, function: &Function) -> Result<(), ManifestError> {
    let len = function.code.as_bytes().len();
    count(&format!("{field}.code"), len, 1, limits::FUNCTION_BYTES)?;
    if function.size as usize != len {
        let why = format!("is {} and its code has {len} bytes; both must be the original's", function.size);
        return Err(unfit(format!("{field}.size"), why));
    }
    count(&format!("{field}.holes"), function.holes.len(), 0, limits::HOLES)?;
    if function.object.is_none() && !function.holes.is_empty() {
        let why = "must be empty, as the function is in the kernel image; leave it out";
        return Err(unfit(format!("{field}.holes"), why));
    }
    let mut last = 0;
    for (&Hole { offset, len: hole }, field) in named(&format!("{field}.holes"), &function.holes) {
        let end = u64::from(offset) + u64::from(hole);
        if hole == 0 || u64::from(offset) < last || end > u64::from(function.size) {
            let why = "is empty, before the end of the hole before it, or not all in the code";
            return Err(unfit(field, format!("([{offset}, {hole}]) {why}; list them in order")));
        }
        last = end;
    }
    Ok(())
}

fn policy(policy: &Policy) -> Result<(), ManifestError> {
    let field = "policy.coexist_is_safe";
    match (policy.consistency, &policy.coexist_is_safe) {
        (Consistency::Coexist, Some(why)) => {
            line(field, why, limits::REASON_CHARS, "1 to 2000 characters, in one line")
        }
        (Consistency::Coexist, None) => {
            let why = "is missing: say why old and new code may run side by side, or let the consistency be quiescent";
            Err(unfit(field, why))
        }
        (_, Some(_)) => Err(unfit(field, "is for the consistency coexist only; take it out")),
        (_, None) => Ok(()),
    }
}

/// Each entry of a list, with its name for errors.
fn named<'l, T>(list: &'l str, entries: &'l [T]) -> impl Iterator<Item = (&'l T, String)> {
    entries.iter().enumerate().map(move |(index, entry)| (entry, format!("{list}[{index}]")))
}

fn once<'l, T: Eq + Hash + 'l>(
    entries: impl Iterator<Item = (&'l T, String)>,
    what: impl Fn(&T) -> String,
) -> Result<(), ManifestError> {
    let mut seen = HashSet::new();
    for (entry, field) in entries {
        if !seen.insert(entry) {
            return Err(ManifestError::Twice { field, what: what(entry) });
        }
    }
    Ok(())
}

fn count(field: &str, found: usize, least: usize, limit: usize) -> Result<(), ManifestError> {
    if (least..=limit).contains(&found) {
        return Ok(());
    }
    Err(ManifestError::Count { field: field.to_owned(), found, least, limit })
}

fn rule(field: &str, text: &str, holds: bool, rule: &'static str) -> Result<(), ManifestError> {
    if holds {
        return Ok(());
    }
    let found = text.chars().take(SHOWN_CHARS).collect();
    Err(ManifestError::Text { field: field.to_owned(), found, rule })
}

/// A text for people. It is shown on terminals, which obey control characters.
fn line(field: &str, text: &str, limit: usize, what: &'static str) -> Result<(), ManifestError> {
    let chars = text.chars().count();
    let good = (1..=limit).contains(&chars) && !text.contains(char::is_control) && !text.trim().is_empty();
    rule(field, text, good, what)
}

fn symbol_name(field: &str, name: &str) -> Result<(), ManifestError> {
    let good = has_chars(name, limits::SYMBOL_CHARS, |byte| byte.is_ascii_graphic());
    rule(field, name, good, "a symbol's name: 1 to 511 printable characters without spaces")
}

fn module_name(field: &str, name: &str) -> Result<(), ManifestError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = has_chars(name, limits::MODULE_NAME_CHARS, is_plain);
    rule(field, name, good, "a module's name as in /sys/module: 1 to 55 of a-z, A-Z, 0-9 and _")
}

fn object(field: &str, object: Option<&str>) -> Result<(), ManifestError> {
    object.map_or(Ok(()), |name| module_name(field, name))
}

fn has_chars(text: &str, limit: usize, each: impl Fn(u8) -> bool) -> bool {
    (1..=limit).contains(&text.len()) && text.bytes().all(each)
}

/// `CVE-`, a year, `-`, and 4 to 19 digits (the CVE Record Format's `cveId`, version 5.1).
fn is_cve(id: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    id.strip_prefix("CVE-").and_then(|rest| rest.split_once('-')).is_some_and(|(year, number)| {
        year.len() == 4 && digits(year) && (4..=19).contains(&number.len()) && digits(number)
    })
}

fn unfit(field: impl Into<String>, why: impl Into<String>) -> ManifestError {
    ManifestError::Unfit { field: field.into(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::super::{BuildId, Kernel, ModuleInfo};
    use super::*;

    fn good() -> Manifest {
        Manifest {
            name: "cve-2026-52923".parse().unwrap(),
            summary: "ipc: no ids beyond the limit".into(),
            fixes: vec!["CVE-2026-52923".into()],
            kernels: vec![Kernel {
                release: "6.1.0-47-cloud-amd64".into(),
                build_id: BuildId::from([7; 20]),
            }],
            module: ModuleInfo { name: "lup_ipc".into(), symbols: vec![import("ipc_mni")] },
            functions: vec![function("ipc_addid", None), function("nf_hook", Some("nf_tables"))],
            policy: Policy {
                consistency: Consistency::Coexist,
                coexist_is_safe: Some("it only refuses more".into()),
                draining: super::super::Draining::Watch,
                tombstones: false,
            },
            requires: vec!["first".parse().unwrap()],
        }
    }

    fn import(name: &str) -> Import {
        let source = Symbol { name: name.into(), object: None, position: 0 };
        Import { name: name.into(), source }
    }

    fn function(name: &str, object: Option<&str>) -> Function {
        Function {
            name: name.into(),
            object: object.map(Into::into),
            position: 0,
            new: format!("lucos_{name}"),
            size: 16,
            code: vec![0x90; 16].into(),
            holes: object.map_or(Vec::new(), |_| vec![(1, 4).into(), (5, 4).into(), (12, 4).into()]),
        }
    }

    /// The error when `change` is made to a good manifest: by reading, and by writing.
    fn refused(change: impl Fn(&mut Manifest)) -> ManifestError {
        let mut manifest = good();
        change(&mut manifest);
        let error = manifest.to_json().unwrap_err();
        assert_eq!(Manifest::read(&serde_json::to_vec(&manifest).unwrap()), Err(error.clone()));
        error
    }

    #[test]
    fn a_good_manifest_is_read_as_it_was_written() {
        let json = good().to_json().unwrap();
        assert_eq!(Manifest::read(&json), Ok(good()));
    }

    #[test]
    fn only_what_has_an_obvious_default_may_be_left_out() {
        let text = r#"{"name": "a", "summary": "b", "kernels": [{"release": "6.1", "build_id":
            "0707070707070707070707070707070707070707"}], "module": {"name": "m"},
            "functions": [{"name": "f", "new": "g", "size": 1, "code": "kA=="}], "policy": {"consistency": "quiescent"}}"#;
        let manifest = Manifest::read(text.as_bytes()).unwrap();
        assert_eq!(
            (manifest.policy.draining, manifest.functions[0].position),
            (super::super::Draining::Watch, 0)
        );
        let whole: serde_json::Value = serde_json::from_str(text).unwrap();
        for field in ["name", "summary", "kernels", "module", "functions", "policy"] {
            let mut part = whole.clone();
            part.as_object_mut().unwrap().remove(field);
            let error = Manifest::read(part.to_string().as_bytes()).unwrap_err();
            assert!(error.to_string().contains(&format!("missing field `{field}`")), "{error}");
        }
        let mut more = whole.clone();
        more["policy"]["force"] = true.into();
        let error = Manifest::read(more.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("unknown field `force`"), "{error}");
    }

    #[test]
    fn each_text_that_breaks_its_rule_is_named() {
        type Change = fn(&mut Manifest, String);
        let fields: [(&str, Change, &[&str]); 10] = [
            ("summary", |m, t| m.summary = t, &["", " ", "a\nb", "\x1b[2J"]),
            ("fixes[0]", |m, t| m.fixes[0] = t, &["", "CVE-26-52923", "CVE-2026-1", "cve-2026-52923"]),
            ("kernels[0].release", |m, t| m.kernels[0].release = t, &["", "6.1 x", "6.1\n"]),
            ("module.name", |m, t| m.module.name = t, &["", "a-b", "../a"]),
            ("module.symbols[0].name", |m, t| m.module.symbols[0].name = t, &["", "a b"]),
            ("module.symbols[0].source.name", |m, t| m.module.symbols[0].source.name = t, &["", "a\0"]),
            (
                "module.symbols[0].source.object",
                |m, t| m.module.symbols[0].source.object = Some(t),
                &["", "vm-x"],
            ),
            ("functions[1].name", |m, t| m.functions[1].name = t, &["", "ä"]),
            ("functions[1].new", |m, t| m.functions[1].new = t, &["", "a b"]),
            ("functions[1].object", |m, t| m.functions[1].object = Some(t), &["", "a.ko"]),
        ];
        for (name, change, texts) in fields {
            for text in texts.iter().map(|&text| text.to_owned()).chain(["x".repeat(2001)]) {
                let error = refused(|manifest| change(manifest, text.clone()));
                assert!(
                    matches!(&error, ManifestError::Text { field, .. } if field == name),
                    "{name}: {error}"
                );
                assert!(error.to_string().len() < 400, "{error}");
            }
        }
        let error = refused(|manifest| manifest.policy.coexist_is_safe = Some(String::new()));
        assert!(error.to_string().contains("coexist_is_safe"), "{error}");
    }

    #[test]
    fn each_list_has_a_limit() {
        type Change = fn(&mut Manifest, usize);
        fn kernel(index: usize) -> Kernel {
            Kernel { release: format!("6.1.{index}"), build_id: BuildId::from([7; 20]) }
        }
        fn named(index: usize) -> String {
            format!("n{index}")
        }
        let lists: [(&str, usize, usize, Change); 6] = [
            ("fixes", 0, limits::FIXES, |m, n| {
                m.fixes = (0..n).map(|index| format!("CVE-2026-{index:04}")).collect();
            }),
            ("kernels", 1, limits::KERNELS, |m, n| m.kernels = (0..n).map(kernel).collect()),
            ("requires", 0, limits::REQUIRES, |m, n| {
                m.requires = (0..n).map(|index| named(index).parse().unwrap()).collect();
            }),
            ("module.symbols", 0, limits::SYMBOLS, |m, n| {
                m.module.symbols = (0..n).map(|index| import(&named(index))).collect();
            }),
            ("functions", 1, limits::FUNCTIONS, |m, n| {
                m.functions = (0..n).map(|index| function(&named(index), None)).collect();
            }),
            ("functions[1].holes", 0, limits::HOLES, |m, n| {
                let size = 2 * n.max(1);
                m.functions[1].size = u32::try_from(size).unwrap();
                m.functions[1].code = vec![0; size].into();
                m.functions[1].holes =
                    (0..u32::try_from(n).unwrap()).map(|index| (2 * index, 1).into()).collect();
            }),
        ];
        for (name, least, limit, change) in lists {
            for n in [least, limit] {
                let mut manifest = good();
                change(&mut manifest, n);
                assert_eq!(manifest.check(), Ok(()), "{name} {n}");
            }
            for n in [least.checked_sub(1), Some(limit + 1)].into_iter().flatten() {
                let mut manifest = good();
                change(&mut manifest, n);
                let error = manifest.check().unwrap_err();
                let wanted = ManifestError::Count { field: name.into(), found: n, least, limit };
                assert_eq!(error, wanted);
            }
        }
    }

    #[test]
    fn nothing_is_there_twice() {
        type Change = fn(&mut Manifest);
        let lists: [(&str, Change); 5] = [
            ("fixes[1]", |m| m.fixes.push(m.fixes[0].clone())),
            ("kernels[1]", |m| m.kernels.push(m.kernels[0].clone())),
            ("requires[1]", |m| m.requires.push(m.requires[0].clone())),
            ("module.symbols[1]", |m| m.module.symbols.push(m.module.symbols[0].clone())),
            ("functions[2]", |m| m.functions.push(m.functions[0].clone())),
        ];
        for (name, change) in lists {
            let error = refused(change);
            assert!(matches!(&error, ManifestError::Twice { field, .. } if field == name), "{name}: {error}");
        }
        let mut manifest = good();
        let second = Function { position: 2, ..manifest.functions[0].clone() };
        manifest.functions.push(second);
        assert_eq!(manifest.check(), Ok(()), "two functions of one name");
    }

    #[test]
    fn of_a_module_only_its_own_functions_may_use_symbols() {
        let mut manifest = good();
        manifest.module.symbols[0].source.object = Some("nf_tables".into());
        assert!(matches!(manifest.check(), Err(ManifestError::Unfit { .. })));
        manifest.functions.remove(0);
        assert_eq!(manifest.check(), Ok(()));
        manifest.functions[0].object = Some("nft_compat".into());
        assert!(matches!(manifest.check(), Err(ManifestError::Unfit { .. })));
    }

    #[test]
    fn fields_fit_together() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 10] = [
            ("module.symbols[0].source.object", |m| {
                m.module.symbols[0].source.object = Some("nf_tables".into());
            }),
            ("functions[0].size", |m| m.functions[0].size = 15),
            ("functions[0].holes", |m| m.functions[0].holes = vec![(0, 4).into()]),
            ("functions[1].holes[1]", |m| m.functions[1].holes[1].offset = 4),
            ("functions[1].holes[1]", |m| m.functions[1].holes[1].len = 0),
            ("functions[1].holes[2]", |m| m.functions[1].holes[2].len = 5),
            ("functions[1].holes[2]", |m| m.functions[1].holes[2].offset = u32::MAX),
            ("policy.coexist_is_safe", |m| m.policy.coexist_is_safe = None),
            ("policy.coexist_is_safe", |m| m.policy.consistency = Consistency::PerTask),
            ("requires[0]", |m| m.requires = vec![m.name.clone()]),
        ];
        for (name, change) in changes {
            let error = refused(change);
            assert!(matches!(&error, ManifestError::Unfit { field, .. } if field == name), "{name}: {error}");
        }
        let error = refused(|m| m.functions[0].code = Vec::new().into());
        assert!(matches!(error, ManifestError::Count { least: 1, .. }), "{error}");
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let error = Manifest::read(b"{\n  \"name\": 7}").unwrap_err();
        assert!(matches!(error, ManifestError::Json { line: 2, column: 11, .. }), "{error}");
        let long = vec![b' '; limits::MANIFEST_BYTES + 1];
        assert_eq!(Manifest::read(&long), Err(ManifestError::TooLong { len: long.len() }));
    }
}
