//! Puts a message together: its method, its header, and the pieces of its body.

use bytes::Bytes;

use crate::net::amqp::failure::{Violation, codes};
use crate::net::amqp::message::{Delivery, Returned};
use crate::net::amqp::properties::Head;
use crate::net::amqp::wire::Malformed;

/// Maximum size of a body that is kept in memory, bytes: the default maximum of RabbitMQ before 4.0.
/// A larger body is skipped, and its delivery says so.
pub const MAX_BODY: u64 = 128 << 20;

/// Maximum size of the memory for a body before it comes, bytes. The announced size may be a lie.
const MAX_RESERVED: u64 = 1 << 20;

/// A message without its content.
#[derive(Debug)]
pub enum Announced {
    /// For a consumer, or the answer to `get`.
    Delivery(Box<Delivery>),
    /// One of ours that comes back.
    Returned(Box<Returned>),
}

/// A message whose content is coming.
#[derive(Debug)]
pub struct Assembly {
    announced: Announced,
    /// Bytes of the body to come, once the header is there.
    missing: Option<u64>,
    body: Vec<u8>,
    oversized: Option<u64>,
}

impl Assembly {
    /// Begins with the method of a message.
    pub const fn new(announced: Announced) -> Self {
        Self {
            announced,
            missing: None,
            body: Vec::new(),
            oversized: None,
        }
    }

    /// Takes the header; returns whether the message is complete.
    ///
    /// # Errors
    /// When it comes twice, or its size cannot be read.
    pub fn head(&mut self, payload: &[u8]) -> Result<bool, Violation> {
        if self.missing.is_some() {
            let cause = "the header of a message comes twice";
            return Err(Violation::new(codes::UNEXPECTED_FRAME, cause));
        }
        let head = Head::read(payload).map_err(|flaw| {
            let cause = format!("the header of a message is unreadable: {flaw}");
            Violation::new(codes::FRAME_ERROR, cause)
        })?;
        self.missing = Some(head.size);
        match head.size > MAX_BODY {
            true => self.oversized = Some(head.size),
            false => {
                let reserved = usize::try_from(head.size.min(MAX_RESERVED));
                self.body.reserve_exact(reserved.unwrap_or_default());
            }
        }
        match &mut self.announced {
            Announced::Returned(returned) => returned.properties = head.properties,
            Announced::Delivery(delivery) => {
                delivery.properties = head.properties;
                if delivery.unreadable.is_none() {
                    delivery.unreadable = head.flaw.as_ref().map(Malformed::to_string);
                }
            }
        }
        Ok(head.size == 0)
    }

    /// Takes a piece of the body; returns whether the message is complete.
    ///
    /// # Errors
    /// When there is no header yet, or more body than it says.
    pub fn body(&mut self, piece: &[u8]) -> Result<bool, Violation> {
        let size = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let Some(missing) = self.missing else {
            let cause = "the body of a message comes before its header";
            return Err(Violation::new(codes::UNEXPECTED_FRAME, cause));
        };
        let Some(missing) = missing.checked_sub(size) else {
            let cause = "the body of a message is longer than its header says";
            return Err(Violation::new(codes::FRAME_ERROR, cause));
        };
        self.missing = Some(missing);
        if self.oversized.is_none() {
            self.body.extend_from_slice(piece);
        }
        Ok(missing == 0)
    }

    /// Returns the message with its body.
    pub fn finish(self) -> Announced {
        let whole = Bytes::from(self.body);
        match self.announced {
            Announced::Delivery(mut delivery) => {
                delivery.body = whole;
                delivery.oversized = self.oversized;
                Announced::Delivery(delivery)
            }
            Announced::Returned(mut returned) => {
                returned.body = whole;
                Announced::Returned(returned)
            }
        }
    }
}
