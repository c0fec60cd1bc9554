//! Frames: the pieces of the stream (AMQP 0-9-1, section 4.2.3).

use crate::net::amqp::method::Method;
use crate::net::amqp::properties::Properties;
use crate::net::amqp::wire::{Malformed, Unsendable};

/// Size of what stands around a payload, bytes: kind, channel, size and end.
pub const OVERHEAD: usize = 8;

/// Maximum size of a frame with properties, bytes. RabbitMQ does not split those, and does not hold them to
/// the size that was agreed: it adds headers of its own, and its management API takes larger ones. A
/// connection that ends there would get the same message again, for ever.
pub const MAX_HEADER: usize = 16 << 20;

/// Size of what stands before a payload, bytes.
const BEFORE: usize = OVERHEAD - 1;

/// Last byte of a frame.
const END: u8 = 0xce;

/// A heartbeat.
pub const HEARTBEAT: [u8; OVERHEAD] = [8, 0, 0, 0, 0, 0, 0, END];

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A method.
    Method,
    /// Size and properties of a content.
    Header,
    /// A piece of the body of a content.
    Body,
    /// A sign of life.
    Heartbeat,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Method => 1,
            Self::Header => 2,
            Self::Body => 3,
            Self::Heartbeat => 8,
        }
    }
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind.
    pub kind: Kind,
    /// Channel; 0 is the connection itself.
    pub channel: u16,
    /// Payload.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame of at most `max` bytes, or [`MAX_HEADER`], at the start of `input`, and its size;
    /// `None` while it is not there as a whole.
    ///
    /// # Errors
    /// When that is no frame, or a larger one. The stream cannot be read any more.
    pub fn read(input: &'a [u8], max: usize) -> Result<Option<(Self, usize)>, Malformed> {
        let [kind, c0, c1, s0, s1, s2, s3, rest @ ..] = input else {
            return Ok(None);
        };
        let kind = match kind {
            1 => Kind::Method,
            2 => Kind::Header,
            3 => Kind::Body,
            8 => Kind::Heartbeat,
            _ => {
                let cause = format!("a frame of kind {kind} is unknown");
                return Err(Malformed(cause.into()));
            }
        };
        let size = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let max = match kind {
            Kind::Header => max.max(MAX_HEADER),
            Kind::Method | Kind::Body | Kind::Heartbeat => max,
        };
        if size > max.saturating_sub(OVERHEAD) {
            let cause = format!("a frame with {size} bytes is larger than {max} bytes");
            return Err(Malformed(cause.into()));
        }
        let Some((payload, after)) = rest.split_at_checked(size) else {
            return Ok(None);
        };
        match after.first() {
            None => Ok(None),
            Some(&END) => {
                let channel = u16::from_be_bytes([*c0, *c1]);
                let frame = Self {
                    kind,
                    channel,
                    payload,
                };
                Ok(Some((frame, size + OVERHEAD)))
            }
            Some(_) => Err("a frame does not end where it says".into()),
        }
    }
}

/// Output of frames of at most `max` bytes.
pub struct Output<'a> {
    /// Bytes to send.
    pub bytes: &'a mut Vec<u8>,
    /// Maximum size of a frame, bytes.
    pub max: usize,
}

impl Output<'_> {
    /// Appends a frame, whose payload `put` appends.
    fn frame(
        &mut self,
        kind: Kind,
        channel: u16,
        put: impl FnOnce(&mut Vec<u8>) -> Result<(), Unsendable>,
    ) -> Result<(), Unsendable> {
        let start = self.bytes.len();
        self.bytes.push(kind.byte());
        self.bytes.extend_from_slice(&channel.to_be_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        put(self.bytes)?;
        let frame = self.bytes.get_mut(start..).unwrap_or_default();
        let size = frame.len().saturating_sub(BEFORE);
        let count = u32::try_from(size)
            .ok()
            .filter(|_| size + OVERHEAD <= self.max);
        let Some(count) = count else {
            return Err(Unsendable(format!(
                "its headers or arguments have {size} bytes, and the broker takes frames of {} bytes",
                self.max
            )));
        };
        if let Some(place) = frame.get_mut(3..BEFORE) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        self.bytes.push(END);
        Ok(())
    }

    /// Appends what `put` appends, all of it or nothing.
    fn whole(
        &mut self,
        put: impl FnOnce(&mut Self) -> Result<(), Unsendable>,
    ) -> Result<(), Unsendable> {
        let start = self.bytes.len();
        let done = put(self);
        if done.is_err() {
            self.bytes.truncate(start);
        }
        done
    }

    /// Appends a method.
    ///
    /// # Errors
    /// When it does not fit into a frame, or an argument into its type; nothing is appended.
    pub fn method(&mut self, channel: u16, method: &Method) -> Result<(), Unsendable> {
        self.whole(|out| out.frame(Kind::Method, channel, |bytes| method.put(bytes)))
    }

    /// Appends a method with its content.
    ///
    /// # Errors
    /// When method or properties do not fit; nothing is appended.
    pub fn content(
        &mut self,
        channel: u16,
        method: &Method,
        properties: &Properties,
        body: &[u8],
    ) -> Result<(), Unsendable> {
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let piece = self.max.saturating_sub(OVERHEAD).max(1);
        self.whole(|out| {
            out.frame(Kind::Method, channel, |bytes| method.put(bytes))?;
            out.frame(Kind::Header, channel, |bytes| properties.put(size, bytes))?;
            let frames = body.len().div_ceil(piece);
            out.bytes.reserve(body.len() + frames * OVERHEAD);
            for piece in body.chunks(piece) {
                out.frame(Kind::Body, channel, |bytes| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::amqp::wire::{Reader, Ticket};
    use proptest::prelude::*;

    const MAX: usize = 4096;

    #[test]
    fn a_method_looks_as_the_standard_says() {
        let mut bytes = Vec::new();
        let mut out = Output {
            bytes: &mut bytes,
            max: MAX,
        };
        let get = Method::BasicGet {
            ticket: Ticket,
            queue: "q".into(),
            no_ack: true,
        };
        out.method(3, &get).expect("it fits");
        let wanted = b"\x01\0\x03\0\0\0\x09\0\x3c\0\x46\0\0\x01q\x01\xce";
        assert_eq!(bytes, wanted);
        let (frame, size) = Frame::read(&bytes, MAX).expect("frame").expect("whole");
        assert_eq!((frame.channel, size), (3, bytes.len()));
        assert_eq!(Method::read(&mut Reader::new(frame.payload)), Ok(get));
        let (beat, _) = Frame::read(&HEARTBEAT, MAX).expect("frame").expect("whole");
        assert_eq!((beat.kind, beat.channel), (Kind::Heartbeat, 0));
    }

    #[test]
    fn what_does_not_fit_is_not_appended() {
        let mut bytes = b"before".to_vec();
        let mut out = Output {
            bytes: &mut bytes,
            max: MAX,
        };
        let publish = Method::BasicPublish {
            ticket: Ticket,
            exchange: String::new(),
            key: "q".into(),
            bits: 0,
        };
        let mut large = Properties::default();
        large.headers.push("h", "x".repeat(MAX));
        assert!(out.content(1, &publish, &large, b"body").is_err());
        let cancel = Method::BasicCancelOk {
            tag: "x".repeat(256),
        };
        assert!(out.method(1, &cancel).is_err());
        assert_eq!(bytes, b"before");
    }

    #[test]
    fn a_frame_has_a_limit() {
        let mut bytes = Vec::new();
        let mut out = Output {
            bytes: &mut bytes,
            max: MAX,
        };
        let publish = Method::BasicCancelOk { tag: "t".into() };
        out.content(1, &publish, &Properties::default(), &[0; 2 * MAX])
            .expect("it fits");
        let mut rest = &bytes[..];
        let mut sizes = Vec::new();
        while let Some((_, size)) = Frame::read(rest, MAX).expect("frame") {
            sizes.push(size);
            rest = &rest[size..];
        }
        assert!(rest.is_empty());
        assert_eq!(sizes[2..], [MAX, MAX, 2 * OVERHEAD + OVERHEAD]);
        assert!(Frame::read(&bytes[sizes[0] + sizes[1]..], MAX - 1).is_err());
        let head = |size: u32| [&[2, 0, 1][..], &size.to_be_bytes()].concat();
        let most = u32::try_from(MAX_HEADER - OVERHEAD).expect("size");
        assert_eq!(Frame::read(&head(most), MAX), Ok(None));
        assert!(Frame::read(&head(most + 1), MAX).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), kind in 0..9_u8) {
            let _ = Frame::read(&bytes, MAX);
            // A frame of a right kind and size.
            let size = u8::try_from(bytes.len()).unwrap_or(0);
            let whole = [&[kind, 0, 1, 0, 0, 0, size][..], &bytes, &[END]].concat();
            if let Ok(Some((frame, _))) = Frame::read(&whole, MAX) {
                prop_assert_eq!(frame.payload, &bytes[..]);
                if let Ok(method) = Method::read(&mut Reader::new(frame.payload)) {
                    prop_assert!(!method.name().is_empty());
                }
            }
        }
    }
}
