//! Receipts of sources for their events, and when they are spent.

use tokio::sync::oneshot;

pub use crate::net::amqp::queue::Tag;
use crate::net::session::SessionAck;

/// Progress of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Nothing runs for it: it is ignored, or its refusal is on disk.
    Refused,
    /// It is on disk, with its unit.
    Accepted,
    /// It was accepted before, and made this unit, if any.
    Duplicate(Option<&'a str>),
    /// Another event has its id, so that nothing runs for it.
    Taken,
    /// Its unit has ended, this is on disk, and no retry follows.
    Ended,
}

/// Receipt of a source for an event.
#[derive(Debug)]
pub enum Receipt {
    /// None: the client made the event itself.
    None,
    /// Acknowledgement of an MQTT message, spent when the message is on disk.
    Mqtt(SessionAck),
    /// The answer to a submitter, given when the unit is on disk.
    Submitted(Submitter),
    /// Acknowledgement of a message of a queue, spent when the message is on disk, or when its unit
    /// has ended.
    Queue(QueueAck),
    /// A number of a test, spent as the test says.
    #[cfg(test)]
    Script(script::Number),
}

impl Receipt {
    /// Returns whether `progress` spends it. The acknowledgement of MQTT does not wait for the end
    /// of a run: the broker sends no more than Receive Maximum messages without it.
    #[must_use]
    pub const fn is_spent_by(&self, progress: Progress<'_>) -> bool {
        let at_end = match self {
            Self::None | Self::Mqtt(_) | Self::Submitted(_) => false,
            Self::Queue(ack) => ack.at_end,
            #[cfg(test)]
            Self::Script(number) => number.at_end,
        };
        match progress {
            Progress::Refused | Progress::Taken | Progress::Ended => true,
            Progress::Accepted | Progress::Duplicate(_) => !at_end,
        }
    }
}

/// Acknowledgement of a message of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAck {
    /// Number of the queue.
    pub source: u32,
    /// The delivery.
    pub tag: Tag,
    /// Whether it is spent when the unit has ended only.
    pub at_end: bool,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// Its unit is on disk.
    Accepted,
    /// Its unit was on disk before.
    Known,
    /// Another unit has its id.
    Taken,
    /// The configuration has no such type any more.
    Gone,
    /// Too many units wait.
    Full,
}

/// A submitter that waits for an answer.
#[derive(Debug)]
pub struct Submitter(pub oneshot::Sender<Submitted>);

impl Submitter {
    /// Answers it.
    pub fn tell(self, progress: Progress<'_>) {
        let answer = match progress {
            Progress::Accepted | Progress::Ended => Submitted::Accepted,
            Progress::Duplicate(_) => Submitted::Known,
            Progress::Taken => Submitted::Taken,
            Progress::Refused => Submitted::Gone,
        };
        // One that has gone may ask with its id.
        let _ = self.0.send(answer);
    }
}

/// The receipts of a source that a test plays.
#[cfg(test)]
pub mod script {
    use tokio::sync::mpsc;

    use super::Progress;

    /// A receipt, by its number.
    #[derive(Debug)]
    pub struct Number {
        /// The number.
        pub number: u32,
        /// Whether it is spent at [`Progress::Ended`] only.
        pub at_end: bool,
        /// Reports the progress of its event to the test.
        pub spent: mpsc::UnboundedSender<(u32, String)>,
    }
    impl Number {
        /// Gives it back.
        pub fn spend(self, progress: Progress<'_>) {
            let _ = self.spent.send((self.number, format!("{progress:?}")));
        }
    }
}
