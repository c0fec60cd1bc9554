//! Tables of headers and arguments, with the types of values that RabbitMQ knows.
//!
//! Source: AMQP 0-9-1, section 4.2.5, with the errata of RabbitMQ
//! (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).

use std::borrow::Cow;

use bytes::Bytes;

use crate::net::amqp::wire::{
    Field, MAX_SHORT, Malformed, Reader, Unsendable, begin, end, put_long, put_short,
};

/// Maximum depth of tables and arrays in each other.
pub const MAX_DEPTH: usize = 32;

/// Maximum number of values in a table, with those in its tables and arrays.
pub const MAX_VALUES: usize = 4096;

/// A value in a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: `value` / 10^`scale`
    Decimal {
        /// Number of decimal places.
        scale: u8,
        /// Value without the decimal point.
        value: i32,
    },
    /// `S`: usually text in UTF-8, and sometimes other bytes
    Text(Bytes),
    /// `A`
    Array(Vec<Value>),
    /// `T`: seconds since 1970
    Time(u64),
    /// `F`
    Table(Table),
    /// `V`
    Void,
    /// `x`
    Binary(Bytes),
}

impl Value {
    /// Returns a text or bytes as text; bytes that are not UTF-8 become replacement characters.
    #[must_use]
    pub fn as_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    /// Returns a whole number of any size.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::I8(n) => Some(n.into()),
            Self::U8(n) => Some(n.into()),
            Self::I16(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::I32(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::I64(n) => Some(n),
            _ => None,
        }
    }

    /// Reads a value at `depth`, in a table that may have `left` more.
    fn read(from: &mut Reader<'_>, depth: usize, left: &mut usize) -> Result<Self, Malformed> {
        *left = left.checked_sub(1).ok_or("it has too many values")?;
        Ok(match from.u8()? {
            b't' => Self::Bool(from.u8()? != 0),
            b'b' => Self::I8(from.array().map(i8::from_be_bytes)?),
            b'B' => Self::U8(from.u8()?),
            b's' => Self::I16(from.array().map(i16::from_be_bytes)?),
            b'u' => Self::U16(from.u16()?),
            b'I' => Self::I32(from.array().map(i32::from_be_bytes)?),
            b'i' => Self::U32(from.u32()?),
            b'l' => Self::I64(from.array().map(i64::from_be_bytes)?),
            b'f' => Self::F32(from.array().map(f32::from_be_bytes)?),
            b'd' => Self::F64(from.array().map(f64::from_be_bytes)?),
            b'D' => Self::Decimal {
                scale: from.u8()?,
                value: from.array().map(i32::from_be_bytes)?,
            },
            b'S' => Self::Text(Bytes::copy_from_slice(from.long()?)),
            b'x' => Self::Binary(Bytes::copy_from_slice(from.long()?)),
            b'T' => Self::Time(from.u64()?),
            b'V' => Self::Void,
            b'F' => Self::Table(Table::read_at(from.long()?, depth + 1, left)?),
            b'A' => {
                if depth >= MAX_DEPTH {
                    return Err("it is too deep".into());
                }
                let mut inner = Reader::new(from.long()?);
                let mut list = Vec::new();
                while !inner.is_empty() {
                    list.push(Self::read(&mut inner, depth + 1, left)?);
                }
                Self::Array(list)
            }
            other => {
                let cause = format!("it has a value of the unknown type 0x{other:02x}");
                return Err(Malformed(cause.into()));
            }
        })
    }

    fn put(&self, out: &mut Vec<u8>, depth: usize) -> Result<(), Unsendable> {
        let mut fixed = |kind: u8, bytes: &[u8]| {
            out.push(kind);
            out.extend_from_slice(bytes);
        };
        match self {
            Self::Bool(value) => fixed(b't', &[(*value).into()]),
            Self::I8(n) => fixed(b'b', &n.to_be_bytes()),
            Self::U8(n) => fixed(b'B', &n.to_be_bytes()),
            Self::I16(n) => fixed(b's', &n.to_be_bytes()),
            Self::U16(n) => fixed(b'u', &n.to_be_bytes()),
            Self::I32(n) => fixed(b'I', &n.to_be_bytes()),
            Self::U32(n) => fixed(b'i', &n.to_be_bytes()),
            Self::I64(n) => fixed(b'l', &n.to_be_bytes()),
            Self::F32(n) => fixed(b'f', &n.to_be_bytes()),
            Self::F64(n) => fixed(b'd', &n.to_be_bytes()),
            Self::Decimal { scale, value } => {
                fixed(b'D', &[*scale]);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Time(seconds) => fixed(b'T', &seconds.to_be_bytes()),
            Self::Void => out.push(b'V'),
            Self::Text(bytes) => {
                out.push(b'S');
                put_long(out, bytes)?;
            }
            Self::Binary(bytes) => {
                out.push(b'x');
                put_long(out, bytes)?;
            }
            Self::Table(table) => {
                out.push(b'F');
                table.put_at(out, depth + 1)?;
            }
            Self::Array(list) => {
                if depth >= MAX_DEPTH {
                    return Err(too_deep());
                }
                out.push(b'A');
                let at = begin(out);
                for value in list {
                    value.put(out, depth + 1)?;
                }
                end(out, at)?;
            }
        }
        Ok(())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::I64(value)
    }
}

fn too_deep() -> Unsendable {
    Unsendable(format!("tables are deeper than {MAX_DEPTH}"))
}

/// Names and their values, in the order of the wire. A name may be there more than once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table(Vec<(Bytes, Value)>);

impl Table {
    /// Returns an empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns whether it has no entries.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends an entry. A name has at most 255 bytes: longer ones cannot be sent.
    pub fn push(&mut self, name: &str, value: impl Into<Value>) {
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.0.push((name, value.into()));
    }

    /// Sets the value of an entry: replaces all of that name.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all entries of a name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name.as_bytes());
    }

    /// Returns the entry with this name; of several the first.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        let entry = self.0.iter().find(|(known, _)| known == name.as_bytes());
        entry.map(|(_, value)| value)
    }

    /// Returns the entries in their order. Names that are not UTF-8 get replacement characters.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, &Value)> {
        let entries = self.0.iter();
        entries.map(|(name, value)| (String::from_utf8_lossy(name), value))
    }

    /// Returns the number of values, with those in tables and arrays.
    #[must_use]
    pub fn values(&self) -> usize {
        fn inside(value: &Value) -> usize {
            match value {
                Value::Array(list) => 1 + list.iter().map(inside).sum::<usize>(),
                Value::Table(table) => 1 + table.values(),
                _ => 1,
            }
        }
        self.0.iter().map(|(_, value)| inside(value)).sum()
    }

    /// Reads a table at `depth`, in one that may have `left` more values.
    fn read_at(bytes: &[u8], depth: usize, left: &mut usize) -> Result<Self, Malformed> {
        if depth > MAX_DEPTH {
            return Err("it is too deep".into());
        }
        let mut from = Reader::new(bytes);
        let mut list = Vec::new();
        while !from.is_empty() {
            let name = Bytes::copy_from_slice(from.short()?);
            list.push((name, Value::read(&mut from, depth, left)?));
        }
        Ok(Self(list))
    }

    fn put_at(&self, out: &mut Vec<u8>, depth: usize) -> Result<(), Unsendable> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let at = begin(out);
        for (name, value) in &self.0 {
            if name.len() > MAX_SHORT {
                let shown = crate::model::text::printable_bytes(name, 40);
                let cause = format!("the name '{shown}' in a table is longer than {MAX_SHORT}");
                return Err(Unsendable(cause));
            }
            put_short(out, name)?;
            value.put(out, depth)?;
        }
        end(out, at)
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Table {
    fn from(entries: [(&str, Value); N]) -> Self {
        let mut table = Self::new();
        for (name, value) in entries {
            table.push(name, value);
        }
        table
    }
}

/// The size of a table is known. A table with a flaw is empty, and what follows it is read.
impl Field for Table {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = from.long()?;
        let table = Self::read_at(bytes, 0, &mut { MAX_VALUES });
        Ok(table.unwrap_or_else(|flaw| {
            from.note(Malformed(format!("a table is unreadable: {flaw}").into()));
            Self::new()
        }))
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.put_at(out, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns any value; numbers with fractions have a value that equals itself.
    pub fn any_value() -> impl Strategy<Value = Value> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i8>().prop_map(Value::I8),
            any::<u8>().prop_map(Value::U8),
            any::<i16>().prop_map(Value::I16),
            any::<u16>().prop_map(Value::U16),
            any::<i32>().prop_map(Value::I32),
            any::<u32>().prop_map(Value::U32),
            any::<i64>().prop_map(Value::I64),
            prop::num::f32::NORMAL.prop_map(Value::F32),
            prop::num::f64::NORMAL.prop_map(Value::F64),
            (any::<u8>(), any::<i32>()).prop_map(|(scale, value)| Value::Decimal { scale, value }),
            bytes().prop_map(Value::Text),
            any::<u64>().prop_map(Value::Time),
            Just(Value::Void),
            bytes().prop_map(Value::Binary),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            let entry = (bytes(), inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::Array),
                prop::collection::vec(entry, 0..5).prop_map(|list| Value::Table(Table(list))),
            ]
        })
    }

    fn written(table: &Table) -> Vec<u8> {
        let mut bytes = Vec::new();
        table.put(&mut bytes).expect("it fits");
        bytes
    }

    #[track_caller]
    fn read(bytes: &[u8]) -> (Table, Option<String>) {
        let mut from = Reader::new(bytes);
        let table = <Table as Field>::read(&mut from).expect("its size is right");
        assert!(from.is_empty());
        (table, from.into_flaw().map(|flaw| flaw.to_string()))
    }

    /// Bytes as RabbitMQ writes them (`rabbit_binary_generator`).
    #[test]
    fn values_look_as_rabbitmq_writes_them() {
        let table = Table::from([
            ("t", true.into()),
            ("S", "hi".into()),
            ("I", Value::I32(-2)),
            ("l", Value::I64(1)),
            ("A", Value::Array(vec![Value::Void, Value::U8(3)])),
            ("F", Value::Table(Table::from([("T", Value::Time(5))]))),
            ("x", Value::Binary(Bytes::from_static(b"\0"))),
        ]);
        let wanted = b"\0\0\0\x43\x01tt\x01\x01SS\0\0\0\x02hi\x01II\xff\xff\xff\xfe\
            \x01ll\0\0\0\0\0\0\0\x01\x01AA\0\0\0\x03VB\x03\
            \x01FF\0\0\0\x0b\x01TT\0\0\0\0\0\0\0\x05\x01xx\0\0\0\x01\0";
        assert_eq!(
            written(&table).escape_ascii().to_string(),
            wanted.escape_ascii().to_string()
        );
        assert_eq!(read(wanted), (table, None));
    }

    #[test]
    fn entries_are_found_by_name() {
        let mut table = Table::from([("a", Value::I8(-1)), ("b", "x".into()), ("a", true.into())]);
        assert_eq!(table.get("a").and_then(Value::as_integer), Some(-1));
        assert_eq!(
            table.get("b").and_then(Value::as_text).as_deref(),
            Some("x")
        );
        assert_eq!(table.get("c"), None);
        table.set("a", 5_i64);
        let names: Vec<_> = table.iter().map(|(name, _)| name.into_owned()).collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn depth_and_size_have_limits() {
        let mut table = Table::new();
        for _ in 0..MAX_DEPTH {
            table = Table::from([("t", Value::Table(table))]);
        }
        assert_eq!(read(&written(&table)), (table.clone(), None));
        let deeper = Table::from([("t", Value::Table(table))]);
        assert!(deeper.put(&mut Vec::new()).is_err());
        let mut array = Value::Void;
        for _ in 0..=MAX_DEPTH {
            array = Value::Array(vec![array]);
        }
        let deeper = Table::from([("a", array)]);
        assert!(deeper.put(&mut Vec::new()).is_err());
        let full = Table::from([("a", Value::Array(vec![Value::Void; MAX_VALUES - 1]))]);
        assert_eq!(read(&written(&full)).1, None);
        assert_eq!(full.values(), MAX_VALUES);
        let more = Table::from([("a", Value::Array(vec![Value::Void; MAX_VALUES]))]);
        let (table, flaw) = read(&written(&more));
        assert!(table.is_empty());
        assert_eq!(
            flaw.as_deref(),
            Some("a table is unreadable: it has too many values")
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec(any_value(), 0..6)) {
            let entries = values.into_iter().map(|value| (Bytes::from_static(b"n"), value));
            let table = Table(entries.collect());
            let (again, flaw) = read(&written(&table));
            prop_assert_eq!(flaw, None);
            prop_assert_eq!(again, table);
        }
    }
}
