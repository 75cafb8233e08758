//! What of each file goes into the one module.

use std::collections::BTreeSet;

use lucos_lup::limits::FUNCTIONS;
use lucos_lup::manifest::Import;

use crate::MakeError;
use crate::change::Change;
use crate::place::Tables;
use crate::request::{Request, limit};
use crate::select::Selection;
use crate::symvers::Symvers;
use crate::unit::Unit;

/// Each change must have come to a compiler.
pub(crate) fn check_read(request: &Request, units: &[Unit<'_>]) -> Result<(), MakeError> {
    let is_read = |change: &&Change| units.iter().any(|unit| unit.read.contains(change.path.as_str()));
    match request.changes.iter().find(|change| !is_read(change)) {
        Some(change) => {
            let units = units.iter().map(|unit| unit.path.to_owned()).collect();
            Err(MakeError::NotRead { path: change.path.clone(), units })
        }
        None => Ok(()),
    }
}

/// The functions to replace, of each unit.
pub(crate) fn functions(request: &Request, units: &[Unit<'_>]) -> Result<Vec<Vec<String>>, MakeError> {
    let paths = |units: &mut dyn Iterator<Item = &Unit<'_>>| units.map(|unit| unit.path.to_owned()).collect();
    let changed: Vec<BTreeSet<String>> = units.iter().map(Unit::nameable).collect();
    let mut functions: Vec<Vec<String>> = vec![Vec::new(); units.len()];
    let mut named: BTreeSet<&String> = request.functions.iter().collect();
    if named.is_empty() {
        named = changed.iter().flatten().filter(|name| !request.leave.contains(name)).collect();
    }
    if named.is_empty() {
        units.iter().try_for_each(Unit::check_data)?;
        return Err(MakeError::NoFunction { units: paths(&mut units.iter()) });
    }
    for name in named {
        let owners =
            |has: &dyn Fn(usize) -> bool| (0..units.len()).filter(|index| has(*index)).collect::<Vec<_>>();
        let mut of = owners(&|index| changed[index].contains(name));
        if of.is_empty() {
            of = owners(&|index| units[index].has_function(name));
        }
        if of.len() > 1 {
            let units = paths(&mut of.iter().map(|index| &units[*index]));
            return Err(MakeError::Several { name: name.clone(), units });
        }
        // What no file has is refused where the reasons are known; one file knows as much as the others.
        functions[of.first().copied().unwrap_or(0)].push(name.clone());
    }
    limit("functions", functions.iter().map(Vec::len).sum(), FUNCTIONS)?;
    Ok(functions)
}

/// Selects what goes into the module, of each unit: what replaces its functions, and what the other units need of it.
pub(crate) fn select(
    request: &Request,
    exported: &Symvers,
    units: &[Unit<'_>],
    functions: &[Vec<String>],
) -> Result<Vec<Selection>, MakeError> {
    let changed: BTreeSet<String> = units.iter().flat_map(Unit::nameable).collect();
    let changed: Vec<String> = changed.into_iter().collect();
    let mut shared: Vec<BTreeSet<String>> = vec![BTreeSet::new(); units.len()];
    // Each round adds a function that the fix adds, or is the last.
    loop {
        let selections = units.iter().zip(functions).zip(&shared);
        let selections = selections.map(|((unit, functions), shared)| {
            unit.select(exported, &changed, functions, &request.leave, shared)
        });
        let selections = selections.collect::<Result<Vec<_>, _>>()?;
        let mut grown = false;
        for (by, selection) in selections.iter().enumerate() {
            for name in selection.referred().filter(|name| !units[by].defines(name)) {
                let adds = units.iter().position(|unit| unit.adds(name));
                grown |= adds.is_some_and(|index| shared[index].insert(name.to_owned()));
            }
        }
        if !grown {
            return Ok(selections);
        }
    }
}

/// The linker joins what has one name, so nothing that one file keeps to itself may be called as what another one adds.
pub(crate) fn check_names(units: &[Unit<'_>], selections: &[Selection]) -> Result<(), MakeError> {
    for (index, name) in
        selections.iter().enumerate().flat_map(|(index, each)| each.shared().map(move |name| (index, name)))
    {
        let others = units.iter().zip(selections).enumerate().filter(|(other, _)| *other != index);
        let mut others = others.map(|(_, other)| other);
        let clash = others
            .find(|(unit, selection)| unit.defines(name) && selection.referred().any(|other| other == name));
        if let Some((unit, _)) = clash {
            let [first, second] = [units[index].path, unit.path].map(str::to_owned);
            return Err(MakeError::TwoMeanings { name: name.to_owned(), first, second });
        }
    }
    Ok(())
}

/// What the host must know to give an undefined symbol of the module its address: nothing, if the guest's kernel exports the
/// only one of that name.
pub(crate) fn import(
    tables: &Tables<'_>,
    exported: &Symvers,
    parts: &[(&Unit<'_>, &Selection)],
    symbol: &str,
) -> Result<Option<Import>, MakeError> {
    if exported.get(symbol).is_some() && tables.count(symbol) <= 1 {
        return Ok(None);
    }
    let mut users = parts.iter().filter(|(_, selection)| selection.referred().any(|name| name == symbol));
    // What the compiler and objtool refer to by themselves, the first file can refer to as well as any.
    let Some((first, selection)) = users.next().or(parts.first()) else { return Ok(None) };
    let source = first.origin().place(tables, selection.source(symbol))?;
    for (unit, selection) in users {
        if unit.origin().place(tables, selection.source(symbol))? != source {
            let [first, second] = [first.path, unit.path].map(str::to_owned);
            return Err(MakeError::TwoMeanings { name: symbol.to_owned(), first, second });
        }
    }
    Ok(Some(Import { name: symbol.to_owned(), source }))
}
