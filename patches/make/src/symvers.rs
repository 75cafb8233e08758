//! `Module.symvers`: what a kernel and its modules export.

use std::collections::{BTreeSet, HashMap};

use crate::statement::names;

/// One exported symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    /// The namespace that a module must import to use it.
    pub(crate) namespace: Option<String>,
}

/// All that a kernel exports.
#[derive(Debug, Default)]
pub(crate) struct Symvers(HashMap<String, Export>);

impl Symvers {
    /// Reads lines of `crc name module type namespace`, with tabs between (`Documentation/kbuild/modules.rst`).
    pub(crate) fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split('\t').skip(1);
            let name = fields.next()?.to_owned();
            let namespace = fields.nth(2).filter(|name| !name.is_empty()).map(str::to_owned);
            Some((name, Export { namespace }))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// The symbol of that name, if it is exported.
    pub(crate) fn get(&self, name: &str) -> Option<&Export> {
        self.0.get(name)
    }

    /// The namespaces of all symbols that some assembly refers to, sorted, each once.
    pub(crate) fn namespaces(&self, assembly: &str) -> Vec<&str> {
        let names = assembly.lines().flat_map(names);
        let exports = names.filter_map(|name| self.get(name.text));
        let found: BTreeSet<&str> = exports.filter_map(|export| export.namespace.as_deref()).collect();
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_read() {
        let text = "0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n0x2\tb\tdrivers/x\tEXPORT_SYMBOL_GPL\tNS\nnonsense\n";
        let symvers = Symvers::parse(text);
        assert_eq!(symvers.get("a").unwrap().namespace, None);
        assert_eq!(symvers.get("b").unwrap().namespace.as_deref(), Some("NS"));
        assert!(symvers.get("c").is_none());
    }
}
