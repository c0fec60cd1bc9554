//! Room in the outbox for the output in answers. While a broker takes nothing, each run that ends adds
//! an answer, and an answer may have a megabyte.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::answer::without_output;
use crate::model::message::Message;
use crate::os::hooks;

/// Maximum size of the payloads in the outbox, bytes. Beyond it, answers wait without their output.
const MAX_BYTES: u64 = 4 << 30;

/// Minimum interval between two counts of a full outbox.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much of the room is taken.
#[derive(Debug)]
pub struct AnswerRoom {
    max: u64,
    /// Upper bound: the last count, and the answers since.
    bytes: u64,
    counted: Option<Instant>,
    /// Whether it was logged that answers have no output.
    is_full: bool,
}

impl Default for AnswerRoom {
    fn default() -> Self {
        Self {
            max: hooks::max_outbox().unwrap_or(MAX_BYTES),
            // Counted when the first answer comes.
            bytes: u64::MAX,
            counted: None,
            is_full: false,
        }
    }
}

impl AnswerRoom {
    /// Returns `answer` as it may wait at `now`: without its output, if there is no room for that. `count`
    /// returns the size of the payloads in the outbox, bytes.
    pub fn fit(&mut self, answer: Message, now: Instant, count: impl FnOnce() -> u64) -> Message {
        let size = answer.payload.len() as u64;
        let due = self.counted.is_none_or(|last| now >= last + INTERVAL);
        if self.bytes.saturating_add(size) > self.max && due {
            (self.bytes, self.counted) = (count(), Some(now));
        }
        let fits = self.bytes.saturating_add(size) <= self.max;
        if fits {
            self.bytes += size;
        }
        match (std::mem::replace(&mut self.is_full, !fits), fits) {
            (false, false) => warn!(
                "{} bytes wait for the broker: answers wait without their output until it takes some",
                self.bytes
            ),
            (true, true) => info!("answers have their output again"),
            _ => {}
        }
        match fits {
            true => answer,
            false => without_output(&answer).unwrap_or(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::answer::Answer;
    use crate::model::cause::Cause;
    use crate::model::message::Route;
    use crate::model::unit::ReplyAddress;
    use bytes::Bytes;

    #[test]
    fn output_without_room_stays_behind_until_there_is_room() {
        let mut room = AnswerRoom {
            max: 100,
            ..AnswerRoom::default()
        };
        let address = ReplyAddress {
            route: Route::Broker,
            topic: "lab/r".into(),
            correlation: None,
            request: None,
            at_end: None,
        };
        let start = Instant::now();
        let mut fit = |seconds, count: u64| {
            let answer = Answer {
                body: Bytes::from_static(&[b'x'; 40]),
                ..Answer::default()
            };
            let answer = answer.message(&address, ("1".into(), Cause::default()), ("w", "h"));
            let now = start + Duration::from_secs(seconds);
            room.fit(answer, now, || count).payload.len()
        };
        assert_eq!((fit(0, 0), fit(0, 0)), (40, 40));
        // It was counted a moment ago.
        assert_eq!((fit(0, 0), fit(1, 80), fit(1, 0)), (0, 0, 0));
        assert_eq!((fit(2, 60), fit(2, 60)), (40, 0));
    }
}
