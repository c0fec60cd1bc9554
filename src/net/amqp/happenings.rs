//! Happenings on a channel that wait for its user.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::net::amqp::load::Load;
use crate::net::amqp::message::Happening;
use crate::net::amqp::properties::Properties;

/// Size of a happening without its body, bytes, estimated.
const HAPPENING: usize = 512;

/// Size of a value in a table, bytes, estimated.
const VALUE: usize = 128;

/// Happenings and their sizes, oldest first.
#[derive(Debug, Default)]
pub struct Happenings {
    waiting: VecDeque<(Happening, usize)>,
}

impl Happenings {
    /// Adds the newest one.
    pub fn add(&mut self, happening: Happening, load: &mut Load) {
        let size = size(&happening);
        load.hold(size);
        self.waiting.push_back((happening, size));
    }

    /// Returns the oldest one.
    pub fn take(&mut self, load: &mut Load) -> Option<Happening> {
        let (happening, size) = self.waiting.pop_front()?;
        load.let_go(size);
        Some(happening)
    }

    /// Drops all.
    pub fn forget(&mut self, load: &mut Load) {
        for (_, size) in self.waiting.drain(..) {
            load.let_go(size);
        }
    }
}

/// Returns the size of a happening in memory, bytes, estimated.
fn size(happening: &Happening) -> usize {
    let of =
        |properties: &Properties, body: &Bytes| body.len() + properties.headers.values() * VALUE;
    let more = match happening {
        Happening::Delivery(delivery) => of(&delivery.properties, &delivery.body),
        Happening::Returned(returned) => of(&returned.properties, &returned.body),
        _ => 0,
    };
    HAPPENING + more
}
