//! Properties of a message: the content header (AMQP 0-9-1, sections 2.3.5.2 and 4.2.6.1).

use crate::net::amqp::value::Table;
use crate::net::amqp::wire::{Field, Malformed, Reader, Unsendable};

/// Class that the header of a content names: `basic`.
const BASIC: u16 = 60;

/// The message survives a restart of the broker, in a durable queue.
pub const PERSISTENT: u8 = 2;

/// The 14 properties of a message. Texts have at most 255 bytes: longer ones cannot be sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// Media type of the body.
    pub content_type: Option<String>,
    /// Encoding of the body.
    pub content_encoding: Option<String>,
    /// Headers of the application; an empty table is the same as none.
    pub headers: Table,
    /// 1 transient, [`PERSISTENT`] otherwise.
    pub delivery_mode: Option<u8>,
    /// Priority, from 0.
    pub priority: Option<u8>,
    /// Identifier of the request that a reply belongs to.
    pub correlation_id: Option<String>,
    /// Queue for replies.
    pub reply_to: Option<String>,
    /// Time that the message stays in a queue, milliseconds as text.
    pub expiration: Option<String>,
    /// Identifier of the message.
    pub message_id: Option<String>,
    /// Time of the message, seconds since 1970.
    pub timestamp: Option<u64>,
    /// Type of the message.
    pub kind: Option<String>,
    /// User that has published it; the broker refuses another than that of the connection.
    pub user_id: Option<String>,
    /// Program that has published it.
    pub app_id: Option<String>,
    /// Not used any more.
    pub cluster_id: Option<String>,
}

/// The head of a content: size of its body, and what could be read of its properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Size of the body, bytes.
    pub size: u64,
    /// The properties.
    pub properties: Properties,
    /// First flaw of the properties: those with flaws are missing or changed.
    pub flaw: Option<Malformed>,
}

/// Calls `each` for each property in the order of the wire: its bit and its field.
macro_rules! properties {
    ($each:ident) => {
        $each!(15, content_type);
        $each!(14, content_encoding);
        $each!(13, headers);
        $each!(12, delivery_mode);
        $each!(11, priority);
        $each!(10, correlation_id);
        $each!(9, reply_to);
        $each!(8, expiration);
        $each!(7, message_id);
        $each!(6, timestamp);
        $each!(5, kind);
        $each!(4, user_id);
        $each!(3, app_id);
        $each!(2, cluster_id);
    };
}

/// A property that may be absent.
trait Optional: Sized {
    fn is_present(&self) -> bool;
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed>;
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable>;
}

impl<T: Field> Optional for Option<T> {
    fn is_present(&self) -> bool {
        self.is_some()
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        T::read(from).map(Some)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.as_ref().map_or(Ok(()), |value| value.put(out))
    }
}

impl Optional for Table {
    fn is_present(&self) -> bool {
        !self.is_empty()
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        <Self as Field>::read(from)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        <Self as Field>::put(self, out)
    }
}

impl Properties {
    /// Reads the properties that `flags` announces, up to the first that cannot be read.
    fn read(flags: u16, from: &mut Reader<'_>) -> Self {
        let mut found = Self::default();
        macro_rules! read {
            ($bit:literal, $name:ident) => {
                if flags & (1 << $bit) != 0 {
                    match Optional::read(from) {
                        Ok(value) => found.$name = value,
                        Err(flaw) => {
                            from.note(flaw);
                            return found;
                        }
                    }
                }
            };
        }
        properties!(read);
        if !from.is_empty() {
            from.note("there are unknown properties".into());
        }
        found
    }

    /// Appends the payload of a content header for a body of `size` bytes.
    ///
    /// # Errors
    /// When a property does not fit into its type.
    pub fn put(&self, size: u64, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        BASIC.put(out)?;
        0_u16.put(out)?;
        size.put(out)?;
        let mut flags = 0_u16;
        macro_rules! flag {
            ($bit:literal, $name:ident) => {
                if Optional::is_present(&self.$name) {
                    flags |= 1 << $bit;
                }
            };
        }
        properties!(flag);
        flags.put(out)?;
        macro_rules! put {
            ($bit:literal, $name:ident) => {
                if flags & (1 << $bit) != 0 {
                    Optional::put(&self.$name, out)?;
                }
            };
        }
        properties!(put);
        Ok(())
    }
}

impl Head {
    /// Reads the payload of a content header. Only the size of the body must be readable.
    ///
    /// # Errors
    /// When it is not.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(payload);
        let class = from.u16()?;
        if class != BASIC {
            let cause = format!("a content of class {class} is unknown");
            return Err(Malformed(cause.into()));
        }
        let _weight = from.u16()?;
        let size = from.u64()?;
        let mut flags = from.u16();
        let first = flags.clone().unwrap_or_default();
        // Bit 0 announces more flags, of which none is defined.
        while let Ok(more) = &flags
            && more & 1 != 0
        {
            flags = from.u16();
        }
        let properties = match flags {
            Ok(_) => Properties::read(first, &mut from),
            Err(flaw) => {
                from.note(flaw);
                Properties::default()
            }
        };
        Ok(Self {
            size,
            properties,
            flaw: from.into_flaw(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_properties() -> impl Strategy<Value = Properties> {
        let text = || prop::option::of("[a-zä]{0,60}");
        let headers = prop::collection::vec(("[a-z]{1,5}", any::<i64>()), 0..4);
        let headers = headers.prop_map(|list| {
            let mut table = Table::new();
            for (name, value) in list {
                table.push(&name, value);
            }
            table
        });
        let numbers = (
            any::<Option<u8>>(),
            any::<Option<u8>>(),
            any::<Option<u64>>(),
        );
        let texts = prop::collection::vec(text(), 10);
        (headers, numbers, texts).prop_map(|(headers, (mode, priority, timestamp), texts)| {
            let mut texts = texts.into_iter();
            let mut text = || texts.next().flatten();
            Properties {
                content_type: text(),
                content_encoding: text(),
                headers,
                delivery_mode: mode,
                priority,
                correlation_id: text(),
                reply_to: text(),
                expiration: text(),
                message_id: text(),
                timestamp,
                kind: text(),
                user_id: text(),
                app_id: text(),
                cluster_id: text(),
            }
        })
    }

    #[test]
    fn properties_stand_in_the_order_of_the_standard() {
        let properties = Properties {
            content_type: Some("t".into()),
            delivery_mode: Some(PERSISTENT),
            timestamp: Some(1),
            app_id: Some("a".into()),
            ..Properties::default()
        };
        let mut bytes = Vec::new();
        properties.put(3, &mut bytes).expect("it fits");
        let wanted = b"\0\x3c\0\0\0\0\0\0\0\0\0\x03\x90\x48\x01t\x02\0\0\0\0\0\0\0\x01\x01a";
        assert_eq!(bytes, wanted);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(properties in any_properties(), size: u64) {
            let mut bytes = Vec::new();
            prop_assert!(properties.put(size, &mut bytes).is_ok());
            let head = Head::read(&bytes);
            prop_assert_eq!(head, Ok(Head { size, properties, flaw: None }));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Head::read(&bytes);
            let whole = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &bytes].concat();
            prop_assert!(Head::read(&whole).is_ok());
        }
    }
}
