//! Receipts of sources for their events, and when they are spent.

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
            Self::None | Self::Mqtt(_) => false,
            #[cfg(test)]
            Self::Script(number) => number.at_end,
        };
        match progress {
            Progress::Refused | Progress::Ended => true,
            Progress::Accepted | Progress::Duplicate(_) => !at_end,
        }
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
