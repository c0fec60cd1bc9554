//! A message of our own that marks the end of what the broker retains.
//!
//! A broker sends retained messages after it has accepted a subscription (MQTT 5.0, section
//! 3.8.4), but nothing says when it has sent all. It delivers messages in the order in which they
//! came, so a message that is published after the subscription arrives behind them.

/// Levels between the root and the identifier of who asks.
const PLACE: &str = "/infrastructure/replies/";

/// Returns the topic of the marker that client `id` sends to itself.
#[must_use]
pub fn topic(root: &str, id: &str) -> String {
    format!("{root}{PLACE}{id}")
}

/// Returns whether `topic` is one of a marker: no event, and nothing that people want to see.
#[must_use]
pub fn is_marker(topic: &[u8]) -> bool {
    let place = PLACE.as_bytes();
    topic.windows(place.len()).any(|part| part == place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_known() {
        assert!(is_marker(topic("lab/a", "x").as_bytes()));
        assert!(!is_marker(b"lab/infrastructure/pipelines/replies/status"));
        assert!(!is_marker(b""));
    }
}
