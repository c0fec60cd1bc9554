//! Answers of a broker: CONNACK, PUBACK and similar packets, DISCONNECT.
//!
//! They are read here and not by the library. The library takes an unknown reason code for a broken
//! connection, drops the Reason String, and forgets why we were refused.

use std::time::Duration;

use crate::model::message::Qos;
use crate::model::text::printable;
use crate::net::mqtt::offer::Offer;

/// Maximum number of characters to show of a Reason String.
const MAX_TEXT: usize = 200;

/// Reason of an answer: its code (MQTT 5.0, section 2.4) and its text, if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reason {
    /// The code; 0x80 and more are failures.
    pub code: u8,
    /// The Reason String, made printable.
    pub text: Option<String>,
}

impl Reason {
    /// Returns whether it is a failure.
    pub const fn is_failure(&self) -> bool {
        self.code >= 0x80
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(name(self.code))?;
        write!(f, " (0x{:02x})", self.code)?;
        self.text
            .iter()
            .try_for_each(|text| write!(f, ": '{text}'"))
    }
}

/// Returns the meaning of a reason code, for every packet (MQTT 5.0, section 2.4).
const fn name(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        0x04 => "disconnect with will",
        0x10 => "no matching subscribers",
        0x11 => "no subscription existed",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client identifier not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorised",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8c => "bad authentication method",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x92 => "packet identifier not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        _ => "a reason that MQTT 5 does not name",
    }
}

/// A packet from the broker other than PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The broker has accepted or refused us, with this reason and this offer.
    Connack(Reason, Offer),
    /// A QoS 1 publish is complete.
    Puback(u16, Reason),
    /// A QoS 2 publish is half complete, or refused.
    Pubrec(u16, Reason),
    /// The broker completes a QoS 2 publish of its own.
    Pubrel(u16),
    /// A QoS 2 publish is complete.
    Pubcomp(u16, Reason),
    /// One reason for each filter of the SUBSCRIBE with this packet identifier.
    Suback(u16, Vec<Reason>),
    /// The UNSUBSCRIBE with this packet identifier is done.
    Unsuback(u16),
    /// The answer to a ping.
    Pong,
    /// The broker ends the connection, and may name another server.
    Disconnect(Reason, Option<String>),
}

/// A packet that violates the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Maximum number of bytes of a fixed header (MQTT 5.0, section 2.1).
const MAX_HEADER: usize = 5;

/// Returns the lengths of the fixed header and of the whole packet at the start of `input`, if they
/// are complete.
///
/// # Errors
/// When the length is impossible.
pub fn frame(input: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let (mut length, mut shift) = (0, 0);
    for (place, byte) in input.iter().enumerate().skip(1).take(MAX_HEADER - 1) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(Some((place + 1, place + 1 + length)));
        }
    }
    if input.len() >= MAX_HEADER {
        return Err(Malformed);
    }
    Ok(None)
}

/// Reads the packet of the first byte `kind` and the body `body`; `None` for a packet that only a
/// client may send, or that we never requested.
///
/// # Errors
/// When the body is incomplete or wrong.
pub fn read(kind: u8, body: &[u8]) -> Result<Option<Answer>, Malformed> {
    let mut body = Body(body);
    let packet = |body: &mut Body<'_>| body.two();
    Ok(Some(match kind >> 4 {
        2 => {
            let session_present = body.one()? & 1 == 1;
            let mut reason = Reason {
                code: body.one()?,
                text: None,
            };
            let mut offer = Offer {
                session_present,
                ..Offer::default()
            };
            body.properties(|id, value| {
                if id == property::REASON {
                    reason.text = Some(value.text());
                }
                offered(&mut offer, id, &value);
            })?;
            Answer::Connack(reason, offer)
        }
        4 => Answer::Puback(packet(&mut body)?, body.reason()?.0),
        5 => Answer::Pubrec(packet(&mut body)?, body.reason()?.0),
        6 => Answer::Pubrel(packet(&mut body)?),
        7 => Answer::Pubcomp(packet(&mut body)?, body.reason()?.0),
        9 => {
            let id = packet(&mut body)?;
            let mut text = None;
            body.properties(|id, value| {
                if id == property::REASON {
                    text = Some(value.text());
                }
            })?;
            let reason = |code: &u8| Reason {
                code: *code,
                text: text.clone().filter(|_| *code >= 0x80),
            };
            Answer::Suback(id, body.0.iter().map(reason).collect())
        }
        11 => Answer::Unsuback(packet(&mut body)?),
        13 => Answer::Pong,
        14 => {
            let (reason, reference) = body.reason()?;
            Answer::Disconnect(reason, reference)
        }
        _ => return Ok(None),
    }))
}

mod property {
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_ID: u8 = 0x12;
    pub const KEEP_ALIVE: u8 = 0x13;
    pub const REFERENCE: u8 = 0x1c;
    pub const REASON: u8 = 0x1f;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const ALIAS_MAXIMUM: u8 = 0x22;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN: u8 = 0x25;
    pub const MAXIMUM_PACKET: u8 = 0x27;
    pub const WILDCARD: u8 = 0x28;
    pub const SUBSCRIPTION_IDS: u8 = 0x29;
    pub const SHARED: u8 = 0x2a;
}

fn offered(offer: &mut Offer, id: u8, value: &Value<'_>) {
    let number = value.number();
    let short = u16::try_from(number).unwrap_or(u16::MAX);
    let seconds = Duration::from_secs(number.into());
    match id {
        property::SESSION_EXPIRY => offer.session_expiry = Some(seconds),
        property::ASSIGNED_ID => offer.assigned_id = Some(value.text()),
        property::KEEP_ALIVE => offer.keep_alive = Some(seconds),
        property::REFERENCE => offer.server_reference = Some(value.text()),
        property::RECEIVE_MAXIMUM => offer.receive_maximum = short.max(1),
        property::ALIAS_MAXIMUM => offer.alias_maximum = short,
        property::MAXIMUM_QOS => {
            let qos = u8::try_from(number).ok().and_then(Qos::from_number);
            offer.maximum_qos = qos.unwrap_or(Qos::ExactlyOnce);
        }
        property::RETAIN => offer.retain = number != 0,
        property::MAXIMUM_PACKET => offer.maximum_packet = number,
        property::WILDCARD => offer.wildcards = number != 0,
        property::SUBSCRIPTION_IDS => offer.subscription_ids = number != 0,
        property::SHARED => offer.shared = number != 0,
        _ => {}
    }
}

/// Value of a property.
enum Value<'a> {
    Number(u32),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    const fn number(&self) -> u32 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => 0,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Bytes(bytes) => printable(&String::from_utf8_lossy(bytes), MAX_TEXT),
        }
    }
}

/// The unread rest of a packet.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn one(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    fn number(&mut self, bytes: usize) -> Result<u32, Malformed> {
        let bytes = self.take(bytes)?.iter();
        Ok(bytes.fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    fn two(&mut self) -> Result<u16, Malformed> {
        u16::try_from(self.number(2)?).map_err(|_| Malformed)
    }

    fn variable(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.one()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.two()?;
        self.take(length.into())
    }

    /// Reads all properties (MQTT 5.0, section 2.2.2.2), and passes them to `each`.
    fn properties(&mut self, mut each: impl FnMut(u8, Value<'a>)) -> Result<(), Malformed> {
        // CONNACK of MQTT 3.1.1 has none, and short acknowledgements omit them.
        if self.0.is_empty() {
            return Ok(());
        }
        let length = usize::try_from(self.variable()?).map_err(|_| Malformed)?;
        let mut list = Body(self.take(length)?);
        while !list.0.is_empty() {
            let id = list.one()?;
            let value = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => Value::Number(list.number(1)?),
                0x13 | 0x21..=0x23 => Value::Number(list.number(2)?),
                0x02 | 0x11 | 0x18 | 0x27 => Value::Number(list.number(4)?),
                0x0b => Value::Number(list.variable()?),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                    Value::Bytes(list.bytes()?)
                }
                0x26 => {
                    list.bytes()?;
                    Value::Bytes(list.bytes()?)
                }
                _ => return Err(Malformed),
            };
            each(id, value);
        }
        Ok(())
    }

    /// Reads a reason code with its text and the server that it names; success if nothing is left.
    fn reason(&mut self) -> Result<(Reason, Option<String>), Malformed> {
        let (mut reason, mut reference) = (Reason::default(), None);
        if self.0.is_empty() {
            return Ok((reason, reference));
        }
        reason.code = self.one()?;
        self.properties(|id, value| match id {
            property::REASON => reason.text = Some(value.text()),
            property::REFERENCE => reference = Some(value.text()),
            _ => {}
        })?;
        Ok((reason, reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(code: u8, text: Option<&str>) -> Reason {
        Reason {
            code,
            text: text.map(str::to_owned),
        }
    }

    #[test]
    fn acknowledgements_short_and_long_with_codes_known_and_unknown() {
        let read = |kind, body: &[u8]| read(kind, body).expect("well formed").expect("known");
        assert_eq!(read(0x40, &[1, 2]), Answer::Puback(0x102, reason(0, None)));
        assert_eq!(
            read(0x40, &[0, 2, 0x95]),
            Answer::Puback(2, reason(0x95, None))
        );
        assert_eq!(
            read(0x40, &[0, 2, 0xee, 0]),
            Answer::Puback(2, reason(0xee, None))
        );
        let with_text = [0, 9, 0x97, 10, 0x1f, 0, 2, b'n', 0x07, 0x26, 0, 0, 0, 0];
        let Answer::Pubrec(9, said) = read(0x50, &with_text) else {
            panic!("a PUBREC");
        };
        assert_eq!(said.to_string(), r"quota exceeded (0x97): 'n\u{7}'");
        assert_eq!(read(0x62, &[0, 3]), Answer::Pubrel(3));
        assert_eq!(
            read(0x90, &[0, 1, 0, 1, 0, 0x87]),
            Answer::Suback(
                1,
                vec![reason(1, None), reason(0, None), reason(0x87, None)]
            )
        );
        assert_eq!(read(0xe0, &[]), Answer::Disconnect(reason(0, None), None));
        let moved = [0x9c, 5, 0x1c, 0, 2, b'h', b'2'];
        assert_eq!(
            read(0xe0, &moved),
            Answer::Disconnect(reason(0x9c, None), Some("h2".into()))
        );
    }

    #[test]
    fn all_that_a_connack_offers() {
        let properties = [
            &[0x11, 0, 0, 0, 60, 0x21, 0, 20, 0x24, 1, 0x25, 0][..],
            &[0x27, 0, 1, 0, 0, 0x12, 0, 1, b'x', 0x22, 0, 10, 0x28, 0],
            &[
                0x29, 0, 0x2a, 0, 0x13, 0, 30, 0x1c, 0, 1, b'h', 0x1f, 0, 1, b'r',
            ],
        ]
        .concat();
        let length = u8::try_from(properties.len()).expect("short");
        let body = [&[1, 0, length], &properties[..]].concat();
        let offer = Offer {
            session_present: true,
            session_expiry: Some(Duration::from_secs(60)),
            receive_maximum: 20,
            maximum_qos: Qos::AtLeastOnce,
            retain: false,
            maximum_packet: 65536,
            assigned_id: Some("x".into()),
            alias_maximum: 10,
            wildcards: false,
            subscription_ids: false,
            shared: false,
            keep_alive: Some(Duration::from_secs(30)),
            server_reference: Some("h".into()),
        };
        let wanted = Answer::Connack(reason(0, Some("r")), offer);
        assert_eq!(read(0x20, &body), Ok(Some(wanted)));
        // A CONNACK of MQTT 3.1.1 ends after the code.
        let old = Answer::Connack(reason(1, None), Offer::default());
        assert_eq!(read(0x20, &[0, 1]), Ok(Some(old)));
    }

    #[test]
    fn frames() {
        assert_eq!(frame(&[0x40]), Ok(None));
        assert_eq!(frame(&[0x40, 0x80]), Ok(None));
        assert_eq!(frame(&[0x40, 0x80, 1, 9]), Ok(Some((3, 131))));
        assert_eq!(frame(&[0xd0, 0]), Ok(Some((2, 2))));
        assert_eq!(frame(&[0x40, 0x80, 0x80, 0x80, 0x80, 1]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(
            kind in any::<u8>(),
            body in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = read(kind, &body);
        }
    }
}
