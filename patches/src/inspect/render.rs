//! The contents of a patch, for people.

use lucos_lup::manifest::{Consistency, Draining, Function, Policy, Symbol};

use super::{Contents, ModuleFacts};

/// Symbols that are listed; `--json` has all.
const SHOWN: usize = 20;

/// Some twenty lines.
pub(super) fn contents(contents: &Contents) -> String {
    let manifest = &contents.manifest;
    let mut lines =
        vec![format!("{}: {}", manifest.name, manifest.summary), line("fixes", &listed(&manifest.fixes))];
    for kernel in &manifest.kernels {
        lines.push(line("kernel", &format!("{}, build-id {}", kernel.release, kernel.build_id)));
    }
    for (function, new_size) in manifest.functions.iter().zip(&contents.module.new_sizes) {
        lines.push(line("replaces", &function_line(function, *new_size)));
    }
    lines.push(line("policy", &policy(&manifest.policy)));
    if let Some(why) = &manifest.policy.coexist_is_safe {
        lines.push(line("", &format!("coexist is safe: {why}")));
    }
    if !manifest.requires.is_empty() {
        let names: Vec<String> = manifest.requires.iter().map(ToString::to_string).collect();
        lines.push(line("requires", &listed(&names)));
    }
    lines.push(line("module", &module(&contents.module, contents.module_size)));
    let resolved: Vec<String> = manifest
        .module
        .symbols
        .iter()
        .map(|import| {
            let source = symbol(&import.source);
            if source == import.name { source } else { format!("{} = {source}", import.name) }
        })
        .collect();
    lines.push(line("symbols", &format!("by the host: {}", listed(&resolved))));
    lines.push(line("", &format!("by the guest: {}", listed(&contents.module.exported))));
    lines.push(line("signature", &signature(contents)));
    lines.push(line("file", &format!("{} bytes, format version {}", contents.size, contents.format_version)));
    lines.join("\n") + "\n"
}

fn line(what: &str, text: &str) -> String {
    format!("  {what:<10} {text}")
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        _ if names.len() <= SHOWN => names.join(", "),
        _ => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

/// A symbol, with its module and its place among others of that name where they matter.
fn symbol(symbol: &Symbol) -> String {
    let module = symbol.object.as_ref().map_or(String::new(), |object| format!(" of {object}"));
    let place = if symbol.position == 0 { String::new() } else { format!(" (number {})", symbol.position) };
    format!("{}{place}{module}", symbol.name)
}

fn function_line(function: &Function, new_size: u64) -> String {
    let old = symbol(&function.symbol());
    format!("{old}, {} bytes, by {}, {new_size} bytes", function.size, function.new)
}

fn policy(policy: &Policy) -> String {
    let consistency = match policy.consistency {
        Consistency::Coexist => "coexist: at once, whoever is in old code",
        Consistency::Quiescent => "quiescent: when nobody is in old code",
        Consistency::PerTask => "per-task, which nothing applies yet",
    };
    let draining = match policy.draining {
        Draining::Watch => "who is in old code is watched",
        Draining::Redirect => "who is in old code is redirected as he leaves",
    };
    let tombstones = if policy.tombstones { "; old code becomes traps" } else { "" };
    format!("{consistency}; {draining}{tombstones}")
}

fn module(module: &ModuleFacts, size: usize) -> String {
    format!("{}, {size} bytes, {} sections, for {}", module.name, module.sections, module.vermagic.trim_end())
}

fn signature(contents: &Contents) -> String {
    contents.signature.as_ref().map_or("none".into(), |signature| {
        format!("by key {}, not verified here: {}", signature.key, signature.comment.replace('\t', " "))
    })
}
