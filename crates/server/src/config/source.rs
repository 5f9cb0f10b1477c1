//! Where settings come from: a TOML file, the environment over it, flags over both, as one tree whose every value remembers its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a setting was written, as an error names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Line of a file; line 0 stands for the whole file.
    File(Rc<str>, usize),
    /// An environment variable.
    Env(Rc<str>),
    /// A flag of the command line.
    Flag(Rc<str>),
    /// Sira's own default.
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(name, 0) => write!(f, "{name}"),
            Origin::File(name, line) => write!(f, "{name}:{line}"),
            Origin::Env(name) | Origin::Flag(name) => f.write_str(name),
            Origin::BuiltIn => f.write_str("built-in defaults"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    pub origin: Origin,
    pub message: String,
}

/// A value with its origin.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub origin: Origin,
    pub value: Value,
}

/// What can be written as a setting.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Table),
    Fraction(f64),
    /// A date, or a number that is none: no setting takes one.
    Other(&'static str),
}

/// Settings by name.
pub(super) type Table = BTreeMap<String, Node>;

impl Value {
    /// The kind of value, for an error that says what was given.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Text(text) => format!("{text:?}"),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(yes) => yes.to_string(),
            Value::Array(_) => "a list".into(),
            Value::Table(_) => "a section".into(),
            Value::Fraction(_) => "a fraction".into(),
            Value::Other(kind) => format!("a {kind}"),
        }
    }
}

/// Reads TOML text; `name` is how errors call it.
pub(super) fn parse(name: &str, text: &str) -> Result<Table, Vec<Problem>> {
    let name: Rc<str> = name.into();
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: toml::de::Error| Problem {
            origin: Origin::File(name.clone(), error.span().map_or(0, |span| line_of(text, span.start))),
            message: error.message().to_owned(),
        };
        return Err(errors.into_iter().map(problem).collect());
    }
    // Counted once: a file has as many values as lines.
    let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let at = |offset: usize| Origin::File(name.clone(), 1 + lines.partition_point(|&line| line < offset));
    Ok(table(document.get_ref(), &at))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn table(source: &DeTable<'_>, at: &dyn Fn(usize) -> Origin) -> Table {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        (key.get_ref().clone().into_owned(), Node { origin: at(key.span().start), value: convert(value.get_ref(), at) })
    };
    source.iter().map(entry).collect()
}

fn convert(source: &DeValue<'_>, at: &dyn Fn(usize) -> Origin) -> Value {
    match source {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).map_or(Value::Other("number out of range"), Value::Integer)
        }
        DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("fraction"), Value::Fraction),
        DeValue::Datetime(_) => Value::Other("date"),
        DeValue::Array(items) => {
            let node = |item: &Spanned<DeValue<'_>>| Node { origin: at(item.span().start), value: convert(item.get_ref(), at) };
            Value::Array(items.iter().map(node).collect())
        }
        DeValue::Table(inner) => Value::Table(table(inner, at)),
    }
}

/// Lays the environment's settings (`SIRA_MEMORY__LIMIT`) over the tree. A variable without `__` is not a setting: `SIRA_URL`, `SIRA_LOG`;
/// but one that would be a setting with `__` is refused, since whoever wrote it believes that it counts.
pub(super) fn overlay_environment(tree: &mut Table, variables: impl IntoIterator<Item = (String, String)>, problems: &mut Vec<Problem>) {
    for (name, text) in variables {
        let Some(path) = name.strip_prefix("SIRA_") else { continue };
        let origin = Origin::Env(name.as_str().into());
        if !path.contains("__") {
            if let Some(meant) = super::schema::meant(&path.to_ascii_lowercase()) {
                let message =
                    format!("did you mean SIRA_{}? The parts of a setting's name have two underscores between them", spelled(&meant));
                problems.push(Problem { origin, message });
            }
            continue;
        }
        let path = path.to_ascii_lowercase();
        match scalar_or_toml(&text, &origin) {
            Ok(value) => set(tree, &path.split("__").collect::<Vec<_>>(), Node { origin, value }, problems),
            Err(message) => problems.push(Problem { origin, message }),
        }
    }
}

/// A setting's path as a variable spells it, without the `SIRA_`.
fn spelled(path: &str) -> String {
    path.replace('.', "__").to_ascii_uppercase()
}

/// Text as it is, unless it is a TOML list or table: the one way to write routing rules in a variable.
fn scalar_or_toml(text: &str, origin: &Origin) -> Result<Value, String> {
    if !text.starts_with(['[', '{']) {
        return Ok(Value::Text(text.to_owned()));
    }
    let parsed = DeValue::parse(text).map_err(|error| format!("not TOML: {}", error.message()))?;
    Ok(convert(parsed.get_ref(), &|_| origin.clone()))
}

/// Puts a value at a path, making the sections on the way.
pub(super) fn set(tree: &mut Table, path: &[&str], node: Node, problems: &mut Vec<Problem>) {
    match path {
        [] => {}
        [last] => {
            tree.insert((*last).to_owned(), node);
        }
        [first, rest @ ..] => {
            let section = || Node { origin: node.origin.clone(), value: Value::Table(Table::new()) };
            match &mut tree.entry((*first).to_owned()).or_insert_with(section).value {
                Value::Table(inner) => set(inner, rest, node, problems),
                other => problems.push(Problem {
                    origin: node.origin.clone(),
                    message: format!("`{first}` is not a section: it is set to {}", other.describe()),
                }),
            }
        }
    }
}

/// The section at a path, if there is one.
pub(super) fn section<'a>(tree: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter().try_fold(tree, |table, name| match &table.get(*name)?.value {
        Value::Table(inner) => Some(inner),
        _ => None,
    })
}
