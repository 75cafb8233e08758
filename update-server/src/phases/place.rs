//! Where an old function can be made to jump to a new one.
//!
//! The NOP that ftrace has at the beginning of a function is the guest's own: the jump goes behind it, so that tracers, BPF and
//! probes that are on it keep working. Behind a static key there are two ways on, and each gets a jump.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions};

pub use super::no_place::NoPlace;
use super::object::{Home, Object};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Image, JumpLabel, Site, SiteKind, Symbol, Symbols};
use crate::kernel::running::Running;
use crate::limits::{PLACE_BYTES, PLACES};
use crate::x86::branches::{self, Lead, Leading};
use crate::x86::jump::JUMP_BYTES;

/// One place that gets a jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first byte.
    pub at: Gva,
    /// Bytes of the whole instructions that the jump is written over.
    pub len: u8,
    /// By which static key alone it is reached, if by one.
    label: Option<JumpLabel>,
}

impl Place {
    /// The bytes of the jump.
    pub fn jump(&self) -> Range<Gva> {
        self.at..self.at.wrapping_add(JUMP_BYTES as u64)
    }
}

/// A function of the kernel or of a module that is to be replaced. What its addresses mean, its home says.
#[derive(Debug, Clone)]
pub struct OldFunction {
    /// Its name.
    pub name: String,
    /// What it is a part of.
    pub home: Home,
    /// Its code, without what is filled up behind it.
    pub text: Range<Gva>,
    /// The parts of it that lie elsewhere (`NAME.cold`).
    pub cold: Vec<Range<Gva>>,
    /// Where it gets a jump. Every way into it comes to one of these before it has done anything.
    pub places: Vec<Place>,
    /// What is in front of those: who is there has not begun.
    before: Vec<Range<Gva>>,
}

/// Where an instruction is, seen from an old function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Somewhere else.
    Outside,
    /// In front of the jump: it comes to the new function.
    Before,
    /// Within the bytes of the jump.
    Under,
    /// In the old function.
    Inside,
}

impl OldFunction {
    /// Finds the function `name` of `image` and its places. With several of that name, `position` tells which, by address from
    /// 0 on.
    pub fn find(image: &Image, name: &str, position: Option<usize>) -> Result<Self, NoPlace> {
        let old = Self::unchecked(image, name, position)?;
        old.refuse_branches(&branches::leading_to(image, &old.jumps()))?;
        Ok(old)
    }

    /// Finds several functions, each by its name and position. What leads to them is looked for once for all: it takes as long as
    /// for one.
    pub fn find_all<'n>(
        image: &Image,
        wanted: impl IntoIterator<Item = (&'n str, Option<usize>)>,
    ) -> Result<Vec<Self>, NoPlace> {
        let olds = wanted.into_iter().map(|(name, position)| Self::unchecked(image, name, position));
        let olds = olds.collect::<Result<Vec<_>, _>>()?;
        let jumps: Vec<_> = olds.iter().flat_map(Self::jumps).collect();
        let leading = branches::leading_to(image, &jumps);
        olds.iter().try_for_each(|old| old.refuse_branches(&leading))?;
        Ok(olds)
    }

    /// The function, with places to which something may lead.
    fn unchecked(image: &Image, name: &str, position: Option<usize>) -> Result<Self, NoPlace> {
        let function = || name.to_owned();
        let start = only_function(image.symbols(), name, position)?;
        if image.relocations().is_empty() {
            return Err(NoPlace::NoRelocations);
        }
        let text = image.text_of(start).ok_or_else(|| NoPlace::Gone { function: function() })?;
        if is_entry(image, start) {
            return Err(NoPlace::Entry { function: function() });
        }
        Self::placed(image, name, Home::Image, text)
    }

    /// The function of `object` that has `text`, with its places. What leads to those is another question.
    pub(super) fn placed(
        object: &impl Object,
        name: &str,
        home: Home,
        text: Range<Gva>,
    ) -> Result<Self, NoPlace> {
        let name = name.to_owned();
        let mut old = Self { name, home, text, cold: Vec::new(), places: Vec::new(), before: Vec::new() };
        old.cold = old.cold_parts(object);
        old.find_places(object)?;
        Ok(old)
    }

    /// Where in the guest one of its addresses is.
    pub fn now(&self, kernel: &Running<'_, impl Memory>, at: Gva) -> Gva {
        self.home.now(kernel, at)
    }

    /// By which functions of one guest are told apart: where its code is.
    pub fn key(&self, kernel: &Running<'_, impl Memory>) -> Gva {
        self.now(kernel, self.text.start)
    }

    /// Whether the byte at `at` in the guest is in a place of it, if it is in a module.
    pub(crate) fn is_module_place(&self, at: Gva) -> bool {
        let contains = |place: &Place| (place.at..place.at.wrapping_add(place.len.into())).contains(&at);
        self.home.module().is_some() && self.places.iter().any(contains)
    }

    /// All of its code.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Range<Gva>> {
        std::iter::once(&self.text).chain(&self.cold)
    }

    /// Whether some of `code` is run while it jumps to another function, or is under a jump.
    pub(crate) fn is_needed(&self, code: &Range<Gva>) -> bool {
        let places = self.places.iter().map(|place| place.at..place.at.wrapping_add(place.len.into()));
        let mut needed = self.before.iter().cloned().chain(places);
        needed.any(|needed| needed.start < code.end && code.start < needed.end)
    }

    /// The bytes of its jumps.
    pub(super) fn jumps(&self) -> Vec<Range<Gva>> {
        self.places.iter().map(Place::jump).collect()
    }

    /// Where the instruction at `at` is; `behind_call` if a call returns there, which has its last byte before it.
    pub fn position(&self, at: Gva, behind_call: bool) -> Position {
        let under = |place: &Place| at > place.at && place.jump().contains(&at);
        if self.places.iter().any(under) {
            return Position::Under;
        }
        let starts = self.places.iter().any(|place| place.at == at);
        if starts || !behind_call && self.before.iter().any(|range| range.contains(&at)) {
            return Position::Before;
        }
        let inside = if behind_call { Gva(at.0.wrapping_sub(1)) } else { at };
        if self.parts().any(|part| part.contains(&inside)) { Position::Inside } else { Position::Outside }
    }

    /// The instructions of its text, up to the first that is none.
    fn instructions<'i>(&self, object: &'i impl Object) -> Option<Decoder<'i>> {
        let len = usize::try_from(self.text.end.0 - self.text.start.0).ok()?;
        let code = object.bytes(self.text.start, len)?;
        Some(Decoder::with_ip(64, code, self.text.start.0, DecoderOptions::NONE))
    }

    /// The compiler puts what is seldom run into a part with a name of its own, and only the function itself goes there.
    fn cold_parts(&self, object: &impl Object) -> Vec<Range<Gva>> {
        let mut parts = Vec::new();
        let name = format!("{}.cold", self.name);
        for instruction in self.instructions(object).into_iter().flatten() {
            let target = Gva(instruction.near_branch_target());
            if target.0 == 0 || self.text.contains(&target) {
                continue;
            }
            let Some((symbol, _)) = object.symbols().function(target) else { continue };
            // A static function that several files have has parts with numbers behind their names.
            if symbol.name.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                && let Some(part) = object.text_of(symbol.address)
                && !parts.contains(&part)
            {
                parts.push(part);
            }
        }
        parts
    }

    /// Follows each way from the first instruction up to where a jump can be.
    fn find_places(&mut self, object: &impl Object) -> Result<(), NoPlace> {
        let mut ways: Vec<(Gva, Option<JumpLabel>)> = vec![(self.text.start, None)];
        let mut seen = 0;
        while let Some((at, label)) = ways.pop() {
            seen += 1;
            if seen > PLACES {
                return Err(NoPlace::TooManyWays { function: self.name.clone(), limit: PLACES });
            }
            let site = object.sites().overlapping(at, 1).find(|site| site.start == at);
            let nop = site.filter(|site| object.is_tracers(site));
            let key = site.filter(|site| site.kind == SiteKind::JumpLabel);
            let behind = |site: &Site| site.start.wrapping_add(site.len.into());
            if let Some(skipped) = self.mark(object, at).or_else(|| nop.map(behind)) {
                self.before.push(at..skipped);
                // What goes on only here does so, too.
                ways.push((skipped, label));
            } else if let Some(key) = key {
                let label = object.key(at).ok_or_else(|| self.in_the_way(key))?;
                self.before.push(at..behind(key));
                ways.push((behind(key), None));
                ways.push((label.target, Some(label)));
            } else {
                let place = self.place(object, at, label)?;
                if !self.places.contains(&place) {
                    self.places.push(place);
                }
            }
        }
        self.places.sort_by_key(|place| place.at);
        let overlap = self.places.windows(2).find(|pair| pair[0].jump().contains(&pair[1].at));
        if let Some([first, second]) = overlap.map(|pair| [pair[0], pair[1]]) {
            let how = "a static key";
            return Err(NoPlace::Branch { function: self.name.clone(), at: second.at, from: first.at, how });
        }
        Ok(())
    }

    /// Behind the mark for indirect branches at `at`, if there is one.
    fn mark(&self, object: &impl Object, at: Gva) -> Option<Gva> {
        let bytes = object.bytes(at, 4)?;
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let is_first = at == self.text.start;
        (is_first && instruction.code() == Code::Endbr64).then(|| at.wrapping_add(4))
    }

    fn in_the_way(&self, site: &Site) -> NoPlace {
        NoPlace::Site { function: self.name.clone(), at: site.start, table: site.kind }
    }

    /// The place at `at`, over whole instructions that nobody else has an interest in.
    fn place(&self, object: &impl Object, at: Gva, label: Option<JumpLabel>) -> Result<Place, NoPlace> {
        let function = || self.name.clone();
        let part = std::iter::once(&self.text).chain(&self.cold).find(|part| part.contains(&at));
        let end = part.ok_or_else(|| NoPlace::NoCode { function: function(), at })?.end;
        let room = usize::try_from(end.0 - at.0).unwrap_or(usize::MAX).min(PLACE_BYTES);
        let code = object.bytes(at, room).ok_or_else(|| NoPlace::NoCode { function: function(), at })?;
        let mut decoder = Decoder::with_ip(64, code, at.0, DecoderOptions::NONE);
        while decoder.position() < JUMP_BYTES {
            let here = Gva(decoder.ip());
            if !decoder.can_decode() {
                return Err(NoPlace::TooShort { function: function(), at, end });
            }
            if decoder.decode().is_invalid() {
                let cut = room < PLACE_BYTES && here.0 + 15 > end.0;
                return Err(if cut {
                    NoPlace::TooShort { function: function(), at, end }
                } else {
                    NoPlace::NoCode { function: function(), at: here }
                });
            }
        }
        let len = decoder.position();
        if let Some(site) = object.sites().overlapping(at, len as u64).next() {
            return Err(self.in_the_way(site));
        }
        Ok(Place { at, len: u8::try_from(len).unwrap_or(u8::MAX), label })
    }

    /// Nothing may lead into a jump, nor to its first byte, unless that is where everybody begins.
    /// What else is in `leading` does not matter.
    pub(super) fn refuse_branches(&self, leading: &[Leading]) -> Result<(), NoPlace> {
        for &Leading { to, from, kind } in leading {
            let place = self.places.iter().find(|place| place.jump().contains(&to));
            let expected = place.is_none_or(|place| {
                let own_key = place.label.is_some_and(|label| label.code == from);
                to == place.at && (to == self.text.start || own_key)
            });
            if !expected {
                let how = match kind {
                    Lead::Instruction => "a branch",
                    Lead::JumpLabel => "a static key",
                    Lead::Fixup => "the table of exceptions",
                    Lead::Pointer => "an address in the kernel's or the module's data",
                };
                return Err(NoPlace::Branch { function: self.name.clone(), at: to, from, how });
            }
        }
        Ok(())
    }
}

/// Where the function `name` begins. With several symbols of that name, whatever they are, `position` tells which, by address from
/// 0 on.
pub(super) fn only_function(symbols: &Symbols, name: &str, position: Option<usize>) -> Result<Gva, NoPlace> {
    let unknown = || NoPlace::Unknown { function: name.to_owned() };
    if let Some(index) = position {
        let symbol = symbols.named(name).nth(index).filter(Symbol::is_function);
        return symbol.map(|symbol| symbol.address).ok_or_else(unknown);
    }
    let mut named: Vec<_> = symbols.named(name).filter(Symbol::is_function).collect();
    named.dedup_by_key(|symbol| symbol.address);
    match &named[..] {
        [] => Err(unknown()),
        [only] => Ok(only.address),
        several => Err(NoPlace::Ambiguous { function: name.to_owned(), count: several.len() }),
    }
}

/// Whether it is among the code that processors enter and leave the kernel by (`.entry.text` in
/// `arch/x86/kernel/vmlinux.lds.S`).
fn is_entry(image: &Image, at: Gva) -> bool {
    let symbol = |name| image.symbols().only(name).map(|symbol| symbol.address);
    let (start, end) = (symbol("__entry_text_start"), symbol("__entry_text_end"));
    start.zip(end).is_some_and(|(start, end)| (start..end).contains(&at))
}
