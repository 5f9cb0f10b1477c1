//! Reads a section key by key, remembers which keys it asked for, and refuses the rest with the nearest right one.

use std::cell::RefCell;
use std::time::Duration;

use super::source::{Node, Origin, Problem, Table, Value};
use super::units;

/// Everything found wrong so far: one run over a file reports all of it.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, origin: &Origin, message: impl Into<String>) {
        self.0.borrow_mut().push(Problem { origin: origin.clone(), message: message.into() });
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A value that was read, with the place it came from.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub origin: Origin,
    pub value: T,
}

/// A section being read.
pub(super) struct Section<'p> {
    pub path: String,
    pub origin: Origin,
    entries: Table,
    known: Vec<&'static str>,
    problems: &'p Problems,
}

impl<'p> Section<'p> {
    pub(super) fn new(path: &str, origin: Origin, entries: Table, problems: &'p Problems) -> Section<'p> {
        Section { path: path.to_owned(), origin, entries, known: Vec::new(), problems }
    }

    pub(super) fn problem(&self, origin: &Origin, message: impl Into<String>) {
        self.problems.add(origin, message);
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, whatever it is.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.entries.remove(key)
    }

    fn wrong(&self, key: &str, node: &Node, wanted: &str) {
        self.problem(&node.origin, format!("`{}` must be {wanted}, not {}", self.full(key), node.value.describe()));
    }

    /// A subsection; an absent one is empty.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'p> {
        let origin = self.origin.clone();
        match self.take(key) {
            Some(node) => self.as_section(key, node),
            None => Section::new(&self.full(key), origin, Table::new(), self.problems),
        }
    }

    fn as_section(&self, key: &str, node: Node) -> Section<'p> {
        let entries = match node.value {
            Value::Table(entries) => entries,
            _ => {
                self.wrong(key, &node, "a section");
                Table::new()
            }
        };
        Section::new(&self.full(key), node.origin, entries, self.problems)
    }

    /// Every entry left as a subsection, in the order of names: for sections whose names the user chooses.
    pub(super) fn sections(&mut self) -> Vec<(String, Section<'p>)> {
        let entries = std::mem::take(&mut self.entries);
        entries.into_iter().map(|(name, node)| (name.clone(), self.as_section(&name, node))).collect()
    }

    /// Every entry left as text: for an options table handed to a library.
    pub(super) fn texts(&mut self) -> Vec<(String, Located<String>)> {
        let mut texts = Vec::new();
        for (name, node) in std::mem::take(&mut self.entries) {
            let value = match &node.value {
                Value::Text(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Boolean(yes) => yes.to_string(),
                _ => {
                    self.wrong(&name, &node, "text, a number, true or false");
                    continue;
                }
            };
            texts.push((name, Located { origin: node.origin, value }));
        }
        texts
    }

    /// Sections in a list (`rules = [{...}]` or `[[...]]`).
    pub(super) fn list(&mut self, key: &'static str) -> Option<Vec<Section<'p>>> {
        let node = self.take(key)?;
        match node.value {
            Value::Array(items) => {
                let section = |(i, item): (usize, Node)| self.as_section(&format!("{key}[{i}]"), item);
                Some(items.into_iter().enumerate().map(section).collect())
            }
            _ => {
                self.wrong(key, &node, "a list of sections");
                None
            }
        }
    }

    /// A list of texts that are not empty; in a variable, joined by commas.
    pub(super) fn strings(&mut self, key: &'static str) -> Option<Vec<Located<String>>> {
        let node = self.take(key)?;
        let text = |origin: &Origin, value: &str| Some(Located { origin: origin.clone(), value: value.trim().to_owned() });
        let items: Option<Vec<_>> = match (&node.value, &node.origin) {
            (Value::Array(items), _) => {
                let item = |item: &Node| if let Value::Text(value) = &item.value { text(&item.origin, value) } else { None };
                items.iter().map(item).collect()
            }
            (Value::Text(joined), Origin::Env(_)) => joined.split(',').map(|value| text(&node.origin, value)).collect(),
            _ => None,
        };
        let items = items.filter(|items| items.iter().all(|item| !item.value.is_empty()));
        if items.is_none() {
            self.wrong(key, &node, "a list of texts, such as [\"rocksdb\", \"object\"]");
        }
        items
    }

    /// Text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located<String>> {
        let node = self.take(key)?;
        match node.value {
            Value::Text(value) if !value.trim().is_empty() => Some(Located { origin: node.origin, value }),
            _ => {
                self.wrong(key, &node, "a text that is not empty");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        let node = self.take(key)?;
        let value = match (&node.value, &node.origin) {
            (Value::Boolean(yes), _) => Some(*yes),
            (Value::Text(text), Origin::Env(_) | Origin::Flag(_)) => text.parse().ok(),
            _ => None,
        };
        if value.is_none() {
            self.wrong(key, &node, "true or false");
        }
        Some(Located { origin: node.origin, value: value? })
    }

    /// A whole number within a range.
    pub(super) fn integer(&mut self, key: &'static str, range: std::ops::RangeInclusive<i128>) -> Option<Located<i128>> {
        let node = self.take(key)?;
        let value = match (&node.value, &node.origin) {
            (Value::Integer(number), _) => Some(*number),
            (Value::Text(text), Origin::Env(_) | Origin::Flag(_)) => text.parse().ok(),
            _ => None,
        };
        let value = value.filter(|number| range.contains(number));
        if value.is_none() {
            self.wrong(key, &node, &format!("a whole number from {} to {}", range.start(), range.end()));
        }
        Some(Located { origin: node.origin, value: value? })
    }

    /// A number, whole or not, within a range.
    pub(super) fn fraction(&mut self, key: &'static str, range: std::ops::RangeInclusive<f64>) -> Option<Located<f64>> {
        let node = self.take(key)?;
        let value = match (&node.value, &node.origin) {
            (Value::Integer(number), _) => Some(*number as f64),
            (Value::Fraction(number), _) => Some(*number),
            (Value::Text(text), Origin::Env(_) | Origin::Flag(_)) => text.parse().ok(),
            _ => None,
        };
        let value = value.filter(|number| range.contains(number));
        if value.is_none() {
            self.wrong(key, &node, &format!("a number from {} to {}", range.start(), range.end()));
        }
        Some(Located { origin: node.origin, value: value? })
    }

    /// A list of texts that are not empty.
    pub(super) fn words(&mut self, key: &'static str) -> Option<Located<Vec<String>>> {
        let node = self.take(key)?;
        let word = |item: &Node| match &item.value {
            Value::Text(text) if !text.trim().is_empty() => Some(text.clone()),
            _ => None,
        };
        let words = if let Value::Array(items) = &node.value { items.iter().map(word).collect::<Option<Vec<String>>>() } else { None };
        if words.is_none() {
            self.wrong(key, &node, "a list of texts such as [\"a\", \"b\"]");
        }
        Some(Located { origin: node.origin, value: words? })
    }

    /// A size of at least one byte.
    pub(super) fn size(&mut self, key: &'static str) -> Option<Located<u64>> {
        let node = self.take(key)?;
        let value = match &node.value {
            Value::Integer(number) => u64::try_from(*number).ok().filter(|&bytes| i64::try_from(bytes).is_ok()),
            Value::Text(text) => units::parse_size(text),
            _ => None,
        };
        let value = value.filter(|&bytes| bytes > 0);
        if value.is_none() {
            self.wrong(key, &node, "a size: bytes above 0, or text such as \"512 MiB\" (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)");
        }
        Some(Located { origin: node.origin, value: value? })
    }

    /// A duration longer than nothing.
    pub(super) fn duration(&mut self, key: &'static str) -> Option<Located<Duration>> {
        let node = self.take(key)?;
        let value = match &node.value {
            Value::Integer(number) => u64::try_from(*number).ok().and_then(|seconds| units::parse_duration(&seconds.to_string())),
            Value::Text(text) => units::parse_duration(text),
            _ => None,
        };
        let value = value.filter(|duration| !duration.is_zero());
        if value.is_none() {
            self.wrong(key, &node, "a duration: seconds above 0, or text such as \"5m\" (ms, s, m, h, d)");
        }
        Some(Located { origin: node.origin, value: value? })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> Option<Located<T>> {
        let node = self.take(key)?;
        if let Value::Text(text) = &node.value
            && let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text))
        {
            return Some(Located { origin: node.origin.clone(), value: *value });
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let given = if let Value::Text(text) = &node.value { text.as_str() } else { "" };
        let wanted = format!("one of {}", quoted(&names));
        let hint = nearest(given, &names).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let given = node.value.describe();
        self.problem(&node.origin, format!("`{}` must be {wanted}, not {given}{hint}", self.full(key)));
        None
    }

    /// Refuses a key that is known but does nothing in this version, so that nobody relies on it.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str) {
        if let Some(node) = self.entries.remove(key) {
            self.problem(&node.origin, format!("`{}` is not part of this version: {why}", self.full(key)));
        }
    }

    /// Refuses a switch that is known but not built when it is on; off is what this version does.
    pub(super) fn refuse_if_on(&mut self, key: &'static str, why: &str) {
        if let Some(on) = self.boolean(key)
            && on.value
        {
            self.problem(&on.origin, format!("`{}` is not part of this version: {why}", self.full(key)));
        }
    }

    /// Drops what is left without a word: the section as a whole was already refused.
    pub(super) fn discard(&mut self) {
        self.entries.clear();
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(mut self) {
        self.known.sort_unstable();
        let place = if self.path.is_empty() { "at the top".to_owned() } else { format!("in [{}]", self.path) };
        for (key, node) in &self.entries {
            let near = nearest(key, &self.known).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let known = quoted(&self.known);
            self.problem(&node.origin, format!("unknown key `{key}` {place}; {near}known here: {known}"));
        }
    }
}

/// Words in backticks, joined by commas.
pub(super) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The word that a typing error most likely meant: at most a third of its letters wrong.
pub(super) fn nearest<'w>(given: &str, words: &[&'w str]) -> Option<&'w str> {
    let given = given.to_ascii_lowercase();
    let distance = |word: &&&'w str| strsim::osa_distance(&given, word);
    let best = words.iter().min_by_key(|word| distance(word))?;
    (distance(&best) <= given.chars().count().max(3) / 3).then_some(best)
}
