//! A table of a Cargo.toml: values of a type, and everything that is wrong with them.

use serde_json::{Map, Value};

use crate::error::{Failure, Kind, Result};

/// The known word that is closest to `word`, if any is close.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What is wrong in the declarations, in the order it was met.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn push(&mut self, table: &Table<'_>, key: &str, problem: impl std::fmt::Display) {
        self.0.push(format!("`{}`: `{}.{key}` {problem}", table.file, table.name));
    }

    pub(super) fn into_result(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(Failure::new(Kind::Policy, "the declaration has an error").details(self.0)),
            count => Err(Failure::new(Kind::Policy, format!("the declaration has {count} errors")).details(self.0)),
        }
    }
}

/// One table of a Cargo.toml, with what is needed to talk about it.
pub(super) struct Table<'a> {
    file: &'a str,
    pub(super) name: String,
    pub(super) values: &'a Map<String, Value>,
}

impl<'a> Table<'a> {
    /// The value as a table with these keys only.
    pub(super) fn new(
        file: &'a str,
        name: String,
        value: &'a Value,
        keys: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Value::Object(values) = value else {
            problems.0.push(format!("`{file}`: `{name}` is {}, expected a table", kind_of(value)));
            return None;
        };
        let table = Self { file, name, values };
        for key in values.keys().filter(|key| !keys.contains(&key.as_str())) {
            match nearest(key, keys.iter().copied()) {
                Some(near) => problems.push(&table, key, format!("is not a known key; did you mean `{near}`?")),
                None => problems.push(&table, key, format!("is not a known key; known are {}", keys.join(", "))),
            }
        }
        Some(table)
    }

    pub(super) fn string(&self, key: &str, problems: &mut Problems) -> Option<&'a str> {
        match self.values.get(key)? {
            Value::String(text) if text.is_empty() => problems.push(self, key, "is empty"),
            Value::String(text) if text.chars().any(char::is_control) => {
                problems.push(self, key, format!("has a control character: `{}`", text.escape_debug()));
            }
            Value::String(text) => return Some(text),
            other => problems.push(self, key, format!("is {}, expected a string", kind_of(other))),
        }
        None
    }

    pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        // Types that parse say themselves what they make of a control character.
        let text = match self.values.get(key)? {
            Value::String(text) => text,
            other => {
                problems.push(self, key, format!("is {}, expected a string", kind_of(other)));
                return None;
            }
        };
        text.parse().map_err(|error| problems.push(self, key, format!("is refused: {error}"))).ok()
    }

    pub(super) fn strings(&self, key: &str, problems: &mut Problems) -> Option<Vec<String>> {
        let Value::Array(values) = self.values.get(key)? else {
            problems.push(self, key, format!("is {}, expected a list of strings", kind_of(&self.values[key])));
            return None;
        };
        let mut texts = Vec::new();
        for value in values {
            match value {
                Value::String(text) if !text.is_empty() && !text.chars().any(char::is_control) => {
                    texts.push(text.clone());
                }
                other => problems.push(
                    self,
                    key,
                    format!("has the item `{other}`, expected strings without control characters"),
                ),
            }
        }
        Some(texts)
    }

    pub(super) fn boolean(&self, key: &str, problems: &mut Problems) -> bool {
        match self.values.get(key) {
            None => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                problems.push(self, key, format!("is {}, expected `true` or `false`", kind_of(other)));
                false
            }
        }
    }
}

pub(super) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the boolean `{value}`"),
        Value::Number(value) => format!("the number `{value}`"),
        Value::String(value) => format!("the string `{}`", value.escape_debug()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
    }
}
