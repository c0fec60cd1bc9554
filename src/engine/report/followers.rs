//! Readers of the output of units that wait for more of it, and others that wait for the end of a
//! unit.

use std::collections::HashMap;

use tokio::sync::watch;

/// What a waiting reader hears. Each change wakes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The unit waits or runs. A change means that there may be more output.
    Open,
    /// The ledger has its end.
    Ended,
    /// It was released: the ledger does not know it any more.
    Released,
}

/// The readers that wait, by unit. There are at most as many as connections.
#[derive(Debug, Default)]
pub struct Followers(HashMap<String, watch::Sender<Stage>>);

impl Followers {
    /// Returns what a reader of `unit`, which is at `stage`, waits with.
    pub fn follow(&mut self, unit: &str, stage: Stage) -> watch::Receiver<Stage> {
        self.0.retain(|_, sender| !sender.is_closed());
        match self.0.get(unit) {
            Some(sender) => sender.subscribe(),
            None => {
                let (sender, receiver) = watch::channel(stage);
                self.0.insert(unit.to_owned(), sender);
                receiver
            }
        }
    }

    /// Returns whether a reader waits for `unit`.
    #[must_use]
    pub fn wait_for(&self, unit: &str) -> bool {
        self.0.get(unit).is_some_and(|sender| !sender.is_closed())
    }

    /// Notes that `unit` is at `stage`, or that it has written something.
    pub fn tell(&self, unit: &str, stage: Stage) {
        if let Some(sender) = self.0.get(unit) {
            sender.send_modify(|now| *now = stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_hear_of_their_unit_only_and_are_forgotten_when_they_go() {
        let mut followers = Followers::default();
        let (mut a, b) = (
            followers.follow("a", Stage::Open),
            followers.follow("b", Stage::Open),
        );
        followers.tell("a", Stage::Open);
        assert!(a.has_changed().expect("open"));
        assert!(!b.has_changed().expect("open"));
        a.mark_unchanged();
        followers.tell("a", Stage::Ended);
        assert_eq!(*a.borrow_and_update(), Stage::Ended);
        drop((a, b));
        assert!(!followers.wait_for("a"));
        let _again = followers.follow("c", Stage::Open);
        assert_eq!(followers.0.len(), 1);
    }
}
