//! When messages that were open as the connection was lost are not expected again: the broker has had
//! the time, and the room here, to deliver them.

use tokio::time::{Duration, Instant};

/// Time after which a message that was open when the connection was lost, and whose unit has ended, is
/// not expected again, in graces: 10 minutes. An equal message that another host has lost is taken for it
/// meanwhile.
const LOST_GRACES: u32 = 20;

/// Number of new messages in that time after which it is not expected again either, although there was
/// no room for most of the time: RabbitMQ delivers what it takes back before what is new.
const NEW_BEFORE: u64 = 1000;

/// What the broker could have delivered on one connection.
#[derive(Debug)]
pub struct Expiry {
    /// Time that a lost message is expected for.
    time: Duration,
    /// When lost messages are looked at.
    look: Option<Instant>,
    /// How long there was room for messages on the connection, and since when there is now.
    asked: Duration,
    asking: Option<Instant>,
    /// Number of new messages on the connection.
    new: u64,
}

impl Expiry {
    /// Returns that of messages without a connection, which wait for `grace` when they come again.
    pub fn new(grace: Duration) -> Self {
        Self {
            time: grace * LOST_GRACES,
            look: None,
            asked: Duration::ZERO,
            asking: None,
            new: 0,
        }
    }

    /// Returns the time that a lost message is expected for.
    pub const fn time(&self) -> Duration {
        self.time
    }

    /// Returns when lost messages are looked at.
    pub const fn look(&self) -> Option<Instant> {
        self.look
    }

    /// Plans when lost messages are looked at, if there are some.
    pub fn plan(&mut self, has_lost: bool) {
        self.look = has_lost.then(|| Instant::now() + self.time);
    }

    /// Notes a new message.
    pub const fn came_new(&mut self) {
        self.new += 1;
    }

    /// Notes whether there is a connection and room for messages now.
    pub fn asks(&mut self, asks: bool) {
        if !asks {
            let asked = self.asking.take().map(|since| since.elapsed());
            self.asked += asked.unwrap_or_default();
        } else if self.asking.is_none() {
            self.asking = Some(Instant::now());
        }
    }

    /// Returns whether the broker could have delivered lost messages again.
    pub fn is_over(&self) -> bool {
        let asking = self.asking.map_or(Duration::ZERO, |since| since.elapsed());
        self.asked + asking >= self.time / 2 || self.new >= NEW_BEFORE
    }

    /// Notes that the connection is gone.
    pub const fn disconnected(&mut self) {
        self.look = None;
        (self.asked, self.asking, self.new) = (Duration::ZERO, None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn lost_messages_are_over_after_room_for_half_the_time_or_many_new_ones() {
        let mut expiry = Expiry::new(GRACE);
        expiry.plan(true);
        expiry.asks(true);
        assert!(expiry.look().is_some() && !expiry.is_over());
        expiry.asked = expiry.time() / 2;
        assert!(expiry.is_over());
        expiry.disconnected();
        assert!(expiry.look().is_none() && !expiry.is_over());
        (0..NEW_BEFORE).for_each(|_| expiry.came_new());
        assert!(expiry.is_over());
    }
}
