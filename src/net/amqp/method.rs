//! Methods: what client and broker ask and answer (AMQP 0-9-1, section 1.4 of its reference, and the
//! extensions of RabbitMQ).

use bytes::Bytes;

use crate::net::amqp::value::Table;
use crate::net::amqp::wire::{Field, Malformed, Reader, Ticket, Unsendable, Unused};

/// Bits of arguments that share a byte.
pub mod bits {
    /// `declare`: fail if it does not exist.
    pub const PASSIVE: u8 = 1;
    /// `declare`: survives a restart of the broker.
    pub const DURABLE: u8 = 1 << 1;
    /// `queue.declare`: of this connection only.
    pub const QUEUE_EXCLUSIVE: u8 = 1 << 2;
    /// `queue.declare`: deleted with its last consumer.
    pub const QUEUE_AUTO_DELETE: u8 = 1 << 3;
    /// `basic.consume`: deliveries need no acknowledgement.
    pub const NO_ACK: u8 = 1 << 1;
    /// `basic.consume`: the only consumer.
    pub const EXCLUSIVE: u8 = 1 << 2;
    /// `basic.publish`: return the message if no queue takes it.
    pub const MANDATORY: u8 = 1;
    /// `basic.nack`: this one and all before it.
    pub const MULTIPLE: u8 = 1;
    /// `basic.nack`: put it back into the queue.
    pub const REQUEUE: u8 = 1 << 1;
}

/// Defines the methods: class, number, and arguments in the order of the wire.
macro_rules! methods {
    ($($class:literal $number:literal $name:ident { $($field:ident: $kind:ty),* })+) => {
        /// A method with its arguments, which have the names of the reference.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "the reference of AMQP describes them")]
        pub enum Method {
            $($name { $($field: $kind),* },)+
        }

        impl Method {
            /// Reads the payload of a method frame.
            ///
            /// # Errors
            /// When the method is unknown, or its arguments end too early.
            pub fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                match (from.u16()?, from.u16()?) {
                    $(($class, $number) => Ok(Self::$name {
                        $($field: Field::read(from)?),*
                    }),)+
                    (class, number) => {
                        let cause = format!("method {number} of class {class} is unknown");
                        Err(Malformed(cause.into()))
                    }
                }
            }

            /// Appends the payload of a method frame.
            ///
            /// # Errors
            /// When an argument does not fit into its type.
            pub fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
                match self {
                    $(Self::$name { $($field),* } => {
                        Field::put(&($class as u16), out)?;
                        Field::put(&($number as u16), out)?;
                        $(Field::put($field, out)?;)*
                    })+
                }
                Ok(())
            }

            /// Returns its name, for people.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)+
                }
            }
        }
    };
}

methods! {
    10 10 ConnectionStart {
        major: u8, minor: u8, properties: Table, mechanisms: Bytes, locales: Bytes
    }
    10 11 ConnectionStartOk {
        properties: Table, mechanism: String, response: Bytes, locale: String
    }
    10 20 ConnectionSecure { challenge: Bytes }
    10 30 ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10 31 ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10 40 ConnectionOpen { vhost: String, capabilities: Unused, insist: bool }
    10 41 ConnectionOpenOk { hosts: Unused }
    10 50 ConnectionClose { code: u16, text: String, class: u16, method: u16 }
    10 51 ConnectionCloseOk {}
    10 60 ConnectionBlocked { reason: String }
    10 61 ConnectionUnblocked {}
    20 10 ChannelOpen { out_of_band: Unused }
    20 11 ChannelOpenOk { id: Bytes }
    20 20 ChannelFlow { active: bool }
    20 21 ChannelFlowOk { active: bool }
    20 40 ChannelClose { code: u16, text: String, class: u16, method: u16 }
    20 41 ChannelCloseOk {}
    40 10 ExchangeDeclare {
        ticket: Ticket, exchange: String, kind: String, bits: u8, arguments: Table
    }
    40 11 ExchangeDeclareOk {}
    50 10 QueueDeclare { ticket: Ticket, queue: String, bits: u8, arguments: Table }
    50 11 QueueDeclareOk { queue: String, messages: u32, consumers: u32 }
    50 20 QueueBind {
        ticket: Ticket, queue: String, exchange: String, key: String, no_wait: bool,
        arguments: Table
    }
    50 21 QueueBindOk {}
    50 30 QueuePurge { ticket: Ticket, queue: String, no_wait: bool }
    50 31 QueuePurgeOk { messages: u32 }
    50 40 QueueDelete { ticket: Ticket, queue: String, bits: u8 }
    50 41 QueueDeleteOk { messages: u32 }
    60 10 BasicQos { size: u32, count: u16, global: bool }
    60 11 BasicQosOk {}
    60 20 BasicConsume { ticket: Ticket, queue: String, tag: String, bits: u8, arguments: Table }
    60 21 BasicConsumeOk { tag: String }
    60 30 BasicCancel { tag: String, no_wait: bool }
    60 31 BasicCancelOk { tag: String }
    60 40 BasicPublish { ticket: Ticket, exchange: String, key: String, bits: u8 }
    60 50 BasicReturn { code: u16, text: String, exchange: String, key: String }
    60 60 BasicDeliver {
        consumer: String, tag: u64, redelivered: bool, exchange: String, key: String
    }
    60 70 BasicGet { ticket: Ticket, queue: String, no_ack: bool }
    60 71 BasicGetOk {
        tag: u64, redelivered: bool, exchange: String, key: String, messages: u32
    }
    60 72 BasicGetEmpty { cluster: Unused }
    60 80 BasicAck { tag: u64, multiple: bool }
    60 120 BasicNack { tag: u64, bits: u8 }
    85 10 ConfirmSelect { no_wait: bool }
    85 11 ConfirmSelectOk {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every method, by class and number.
    const ALL: &[(u16, u16)] = &[
        (10, 10),
        (10, 11),
        (10, 20),
        (10, 30),
        (10, 31),
        (10, 40),
        (10, 41),
        (10, 50),
        (10, 51),
        (10, 60),
        (10, 61),
        (20, 10),
        (20, 11),
        (20, 20),
        (20, 21),
        (20, 40),
        (20, 41),
        (40, 10),
        (40, 11),
        (50, 10),
        (50, 11),
        (50, 20),
        (50, 21),
        (50, 30),
        (50, 31),
        (50, 40),
        (50, 41),
        (60, 10),
        (60, 11),
        (60, 20),
        (60, 21),
        (60, 30),
        (60, 31),
        (60, 40),
        (60, 50),
        (60, 60),
        (60, 70),
        (60, 71),
        (60, 72),
        (60, 80),
        (60, 120),
        (85, 10),
        (85, 11),
    ];

    proptest! {
        /// Arguments are any bytes: of those that form a method, it is written and read again.
        #[test]
        fn what_is_written_is_read(
            place in 0..ALL.len(),
            arguments in prop::collection::vec(0..6_u8, 40),
            others in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (class, number) = ALL[place];
            for arguments in [arguments, others] {
                let head = [class.to_be_bytes(), number.to_be_bytes()].concat();
                let bytes = [head, arguments].concat();
                let mut from = Reader::new(&bytes);
                let Ok(method) = Method::read(&mut from) else { continue };
                let mut written = Vec::new();
                prop_assert!(method.put(&mut written).is_ok());
                let mut from = Reader::new(&written);
                prop_assert_eq!(Method::read(&mut from), Ok(method));
                prop_assert!(from.is_empty() && from.into_flaw().is_none());
            }
        }
    }

    #[test]
    fn every_method_is_known() {
        for (class, number) in ALL {
            let head = [class.to_be_bytes(), number.to_be_bytes()].concat();
            let bytes = [head, vec![0; 40]].concat();
            let method = Method::read(&mut Reader::new(&bytes)).expect("known");
            assert!(!method.name().is_empty());
        }
        let unknown = Method::read(&mut Reader::new(&[0, 60, 0, 99]));
        let text = unknown.expect_err("unknown").to_string();
        assert_eq!(text, "method 99 of class 60 is unknown");
    }
}
