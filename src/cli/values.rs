//! Options that have one of a few values: shells complete them.

use std::error::Error;
use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command};

/// Parses one of a few values.
#[derive(Debug, Clone)]
pub struct OneOf<T, E> {
    parse: fn(&str) -> Result<T, E>,
    values: &'static [&'static str],
}

/// Returns the parser `parse`, which accepts `values`. Its own error says so; help names them.
pub fn one_of<T, E>(
    parse: fn(&str) -> Result<T, E>,
    values: &'static [&'static str],
) -> OneOf<T, E> {
    OneOf { parse, values }
}

impl<T, E> TypedValueParser for OneOf<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        TypedValueParser::parse_ref(&self.parse, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.values.iter().map(PossibleValue::new)))
    }
}
