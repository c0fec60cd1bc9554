//! Tables of a configuration file, read key by key.

use std::fmt;

use toml::{Table, Value};

use crate::model::near::nearest;
use crate::model::text::printable;

/// Maximum number of characters of a text that are shown in a message.
pub const MAX_SHOWN: usize = 80;

/// A mistake in a table: a line for the user, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Keys from the table on, and places in lists from 0.
    pub place: Vec<String>,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.is_empty() {
            true => f.write_str(&self.cause),
            false => write!(f, "{}: {}", self.place.join("."), self.cause),
        }
    }
}

/// Mistakes that are found one after another.
#[derive(Debug, Default)]
pub struct Wrongs(Vec<Wrong>);

impl Wrongs {
    /// Notes a mistake.
    pub fn note(&mut self, wrong: Wrong) {
        self.0.push(wrong);
    }

    /// Returns the value of `result`, or notes its mistake.
    pub fn keep<T>(&mut self, result: Result<T, Wrong>) -> Option<T> {
        result.map_err(|wrong| self.note(wrong)).ok()
    }

    /// Returns all of them, in the order in which they were found.
    #[must_use]
    pub fn all(self) -> Vec<Wrong> {
        self.0
    }
}

/// A table whose keys are known.
#[derive(Debug, Clone)]
pub struct Keys<'a> {
    table: &'a Table,
    place: Vec<String>,
}

impl<'a> Keys<'a> {
    /// Takes a value that must be a table.
    ///
    /// # Errors
    /// It is none.
    pub fn of(value: &'a Value, place: Vec<String>) -> Result<Self, Wrong> {
        match value {
            Value::Table(table) => Ok(Self { table, place }),
            _ => Err(Wrong {
                place,
                cause: "it is not a table".to_owned(),
            }),
        }
    }

    /// Checks that no key but the `known` ones is there.
    ///
    /// # Errors
    /// The first other key, and which may have been meant.
    pub fn only(&self, known: &[&str]) -> Result<(), Wrong> {
        self.others(known).next().map_or(Ok(()), Err)
    }

    /// Returns a mistake for each key but the `known` ones.
    pub fn others(&self, known: &[&str]) -> impl Iterator<Item = Wrong> {
        let others = self.table.keys();
        let others = others.filter(|key| !known.contains(&key.as_str()));
        others.map(|other| {
            let cause = match nearest(other, known.iter().copied()) {
                Some(near) => format!("unknown key; did you mean '{near}'?"),
                None => format!("unknown key: known ones are {}", known.join(", ")),
            };
            self.wrong(&printable(other, MAX_SHOWN), cause)
        })
    }

    /// Returns the place of a key.
    #[must_use]
    pub fn place(&self, key: &str) -> Vec<String> {
        let mut place = self.place.clone();
        place.push(key.to_owned());
        place
    }

    /// Makes a mistake at a key.
    #[must_use]
    pub fn wrong(&self, key: &str, cause: impl Into<String>) -> Wrong {
        Wrong {
            place: self.place(key),
            cause: cause.into(),
        }
    }

    /// Makes a mistake of the whole table.
    #[must_use]
    pub fn wrong_table(&self, cause: impl Into<String>) -> Wrong {
        Wrong {
            place: self.place.clone(),
            cause: cause.into(),
        }
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.table.get(key)
    }

    /// Returns the keys and values in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.table.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns which of `keys` is there: one of them at most may be.
    ///
    /// # Errors
    /// There are two.
    pub fn one_of<'k>(&self, keys: &[&'k str]) -> Result<Option<&'k str>, Wrong> {
        let mut there = keys.iter().filter(|key| self.table.contains_key(**key));
        match (there.next(), there.next()) {
            (Some(first), Some(second)) => Err(self.wrong(
                second,
                format!("it cannot stand beside '{first}': give one of them"),
            )),
            (first, _) => Ok(first.copied()),
        }
    }

    /// Returns a text.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Wrong> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "it is not a text: write it in quotes")),
        }
    }

    /// Returns a text, or the texts of a list.
    ///
    /// # Errors
    /// It is something else, or an empty list.
    pub fn texts(&self, key: &str) -> Result<Vec<&'a str>, Wrong> {
        let wrong = || self.wrong(key, "it is neither a text nor a list of texts");
        match self.table.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(list)) if !list.is_empty() => {
                let texts = list.iter().map(|one| one.as_str().ok_or_else(wrong));
                texts.collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Returns a yes or no.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Wrong> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "it is neither true nor false")),
        }
    }
}
