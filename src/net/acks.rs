//! Acknowledgements in the order of their messages (MQTT 5.0, section 4.6). Messages become safe in
//! another order, when one waits for a disk and the next does not.

use std::collections::VecDeque;

/// The acknowledgements of one connection that are not sent yet, oldest first.
#[derive(Debug)]
pub struct Acks<T> {
    waiting: VecDeque<(T, bool)>,
}

impl<T> Default for Acks<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<T: PartialEq> Acks<T> {
    /// Notes the message of the acknowledgement `ack`.
    pub fn came(&mut self, ack: T) {
        self.waiting.push_back((ack, false));
    }

    /// Returns whether all have been sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Notes that the message of `ack` is safe. Returns the acknowledgements to send now, in this
    /// order.
    pub fn safe(&mut self, ack: &T) -> Vec<T> {
        let mut unsafe_yet = self.waiting.iter_mut().filter(|(_, safe)| !safe);
        if let Some((_, safe)) = unsafe_yet.find(|(waiting, _)| waiting == ack) {
            *safe = true;
        }
        let go = self.waiting.iter().take_while(|(_, safe)| *safe).count();
        self.waiting.drain(..go).map(|(ack, _)| ack).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_that_is_safe_early_waits_for_those_before_it() {
        let mut acks: Acks<u16> = Acks::default();
        let none: [u16; 0] = [];
        (1..=4).for_each(|n| acks.came(n));
        assert_eq!(acks.safe(&2), none);
        assert_eq!(acks.safe(&9), none, "that never came");
        assert_eq!(acks.safe(&1), [1, 2]);
        assert_eq!(acks.safe(&1), none, "it has gone");
        assert_eq!(acks.safe(&4), none);
        assert_eq!(acks.safe(&3), [3, 4]);
    }

    proptest! {
        #[test]
        fn all_go_once_and_in_order(
            order in Just((0..20).collect::<Vec<u16>>()).prop_shuffle(),
        ) {
            let mut acks = Acks::default();
            (0..20).for_each(|n| acks.came(n));
            let gone: Vec<u16> = order.iter().flat_map(|n| acks.safe(n)).collect();
            prop_assert_eq!(gone, (0..20).collect::<Vec<u16>>());
        }
    }
}
