//! Frames: the pieces of the stream (AMQP 0-9-1, section 4.2.3).

use crate::net::amqp::method::Method;
use crate::net::amqp::properties::Properties;
use crate::net::amqp::wire::{Malformed, Unsendable};

/// Size of what stands around a payload, bytes: kind, channel, size and end.
pub const OVERHEAD: usize = 8;

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
    /// Reads the frame of at most `max` bytes at the start of `input`, and its size; `None` while it
    /// is not there as a whole.
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
