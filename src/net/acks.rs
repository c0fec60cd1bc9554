//! Acknowledgements in the order of their messages (MQTT 5.0, section 4.6). Messages become safe in
//! another order, when one waits for a disk and the next does not.

use std::collections::VecDeque;

/// An acknowledgement, which is void after its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionAck<T> {
    connection: u64,
    ack: T,
}

impl<T> ConnectionAck<T> {
    /// Returns what the connection knows it by.
    pub const fn get(&self) -> &T {
        &self.ack
    }
}

/// The acknowledgements of one connection that are not sent yet, oldest first.
#[derive(Debug)]
pub struct Acks<T> {
    /// Number of the connection.
    connection: u64,
    waiting: VecDeque<(T, bool)>,
}

impl<T> Default for Acks<T> {
    fn default() -> Self {
        Self {
            connection: 0,
            waiting: VecDeque::new(),
        }
    }
}

impl<T: Clone + PartialEq> Acks<T> {
    /// Begins with a new connection.
    pub fn reconnect(&mut self) {
        self.connection += 1;
        self.waiting.clear();
    }

    /// Notes the message of the acknowledgement `ack`. Returns the acknowledgement for its receiver.
    pub fn came(&mut self, ack: T) -> ConnectionAck<T> {
        self.waiting.push_back((ack.clone(), false));
        ConnectionAck {
            connection: self.connection,
            ack,
        }
    }

    /// Returns whether all have been sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Notes that the message of `ack` is safe. Returns the acknowledgements to send now, in this
    /// order; `None` after its connection.
    pub fn safe(&mut self, ack: &ConnectionAck<T>) -> Option<Vec<T>> {
        if ack.connection != self.connection {
            return None;
        }
        let mut unsafe_yet = self.waiting.iter_mut().filter(|(_, safe)| !safe);
        if let Some((_, safe)) = unsafe_yet.find(|(waiting, _)| *waiting == ack.ack) {
            *safe = true;
        }
        let go = self.waiting.iter().take_while(|(_, safe)| *safe).count();
        Some(self.waiting.drain(..go).map(|(ack, _)| ack).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_that_is_safe_early_waits_for_those_before_it() {
        let mut acks: Acks<u16> = Acks::default();
        let none: Option<Vec<u16>> = Some(Vec::new());
        let [one, two, three, four] = [1, 2, 3, 4].map(|n| acks.came(n));
        assert_eq!(acks.safe(&two), none);
        assert_eq!(acks.safe(&one), Some(vec![1, 2]));
        assert_eq!(acks.safe(&one), none, "it has gone");
        assert_eq!(acks.safe(&four), none);
        assert_eq!(acks.safe(&three), Some(vec![3, 4]));
    }

    #[test]
    fn one_of_an_earlier_connection_is_void() {
        let mut acks: Acks<u16> = Acks::default();
        let earlier = acks.came(1);
        acks.reconnect();
        assert!(acks.is_empty());
        let again = acks.came(1);
        assert_eq!(acks.safe(&earlier), None);
        assert_eq!(acks.safe(&again), Some(vec![1]));
    }

    proptest! {
        #[test]
        fn all_go_once_and_in_order(
            order in Just((0..20).collect::<Vec<usize>>()).prop_shuffle(),
        ) {
            let mut acks = Acks::default();
            let came: Vec<_> = (0..20).map(|n: usize| acks.came(n)).collect();
            let gone: Vec<usize> = order.iter().filter_map(|n| acks.safe(&came[*n])).flatten().collect();
            prop_assert_eq!(gone, (0..20).collect::<Vec<usize>>());
        }
    }
}
