//! `key=value,key=value`, in Cloud Hypervisor's spelling.

use super::ValueError;

/// The pairs of one option's value, each key known and given once.
pub(super) struct Keys {
    pairs: Vec<(String, String)>,
}

impl Keys {
    /// Takes `text` apart. A first element without `=` is the value of `bare`: `root.img,readonly=on`.
    pub(super) fn parse(text: &str, bare: &'static str, known: &[&'static str]) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::Empty);
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (index, element) in split(text)?.into_iter().enumerate() {
            let (key, value) = match element.equals {
                Some(at) => (element.text[..at].to_owned(), element.text[at..].to_owned()),
                None if index == 0 => (bare.to_owned(), element.text),
                None => (element.text, String::new()),
            };
            if !known.contains(&key.as_str()) {
                return Err(ValueError::UnknownKey { key, known: known.join(", ") });
            }
            if value.is_empty() {
                return Err(ValueError::Empty);
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(ValueError::RepeatedKey { key });
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs })
    }

    /// Takes the value of `key` out.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(other, _)| other == key)?;
        Some(self.pairs.swap_remove(at).1)
    }

    /// Takes a switch out: `on` or `off`.
    pub(super) fn take_switch(&mut self, key: &'static str) -> Result<Option<bool>, ValueError> {
        match self.take(key) {
            None => Ok(None),
            Some(word) if word == "on" => Ok(Some(true)),
            Some(word) if word == "off" => Ok(Some(false)),
            Some(found) => Err(ValueError::Switch { key, found }),
        }
    }
}

/// One element, quotes and `=` taken out.
struct Element {
    text: String,
    /// Where the value starts in `text`, if there was an unquoted `=`.
    equals: Option<usize>,
}

/// Splits at commas that no double quotes hide.
fn split(text: &str) -> Result<Vec<Element>, ValueError> {
    let mut elements = Vec::new();
    let mut current = Element { text: String::new(), equals: None };
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                elements.push(std::mem::replace(&mut current, Element { text: String::new(), equals: None }));
            }
            '=' if !quoted && current.equals.is_none() => current.equals = Some(current.text.len()),
            other => current.text.push(other),
        }
    }
    if quoted {
        return Err(ValueError::OpenQuote);
    }
    elements.push(current);
    Ok(elements)
}

/// Quotes `value` where the splitting above would otherwise take it apart.
pub(super) fn quote(value: &str) -> String {
    if value.contains([',', '=']) { format!("\"{value}\"") } else { value.to_owned() }
}
