//! The lines of keys in a file.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};

/// The lines of the keys of a file, by their places.
#[derive(Debug, Clone, Default)]
pub struct KeyLines(HashMap<Vec<String>, usize>);

/// Maximum depth of a key: number and key of a trigger.
const MAX_DEPTH: usize = 3;

impl KeyLines {
    /// Returns the lines of the keys in `text`; none if that is no TOML.
    pub fn of(text: &str) -> Self {
        let starts: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let mut lines = Self::default();
        if let Ok(table) = DeTable::parse(text) {
            lines.add(&mut Vec::new(), table.get_ref(), &starts);
        }
        lines
    }

    fn add(&mut self, place: &mut Vec<String>, table: &DeTable<'_>, breaks: &[usize]) {
        for (key, value) in table {
            let at = key.span().start;
            let line = breaks.partition_point(|end| *end < at) + 1;
            place.push(key.get_ref().to_string());
            self.note(place, line);
            if place.len() < MAX_DEPTH {
                match value.get_ref() {
                    DeValue::Table(inner) => self.add(place, inner, breaks),
                    DeValue::Array(list) => {
                        for (n, item) in list.iter().enumerate() {
                            if let DeValue::Table(inner) = item.get_ref() {
                                place.push(n.to_string());
                                self.add(place, inner, breaks);
                                place.pop();
                            }
                        }
                    }
                    _ => {}
                }
            }
            place.pop();
        }
    }

    /// Notes the line of a key. A table without one of its own has that of its first key.
    fn note(&mut self, place: &[String], line: usize) {
        self.0.insert(place.to_vec(), line);
        if let Some((_, table)) = place.split_last()
            && !table.is_empty()
        {
            let first = self.0.entry(table.to_vec()).or_insert(line);
            *first = line.min(*first);
        }
    }

    /// Returns the line of `place`, otherwise that of the innermost table that contains it.
    pub fn line(&self, place: &[&str]) -> Option<usize> {
        let place = place.iter().filter(|part| !part.is_empty());
        let mut place: Vec<String> = place.map(|part| (*part).to_owned()).collect();
        while !place.is_empty() {
            if let Some(line) = self.0.get(&place) {
                return Some(*line);
            }
            place.pop();
        }
        None
    }
}
