//! A message to ourselves that marks the end of the retained messages.
//!
//! A broker sends retained messages after it has accepted a subscription (MQTT 5.0, section 3.8.4),
//! but does not say when it has sent all. It delivers messages in the order in which they came. So
//! a message that is published after the subscription arrives behind them.

/// Levels between the root and the client identifier.
const PLACE: &str = "/infrastructure/replies/";

/// Returns the topic of the marker that client `id` sends to itself.
#[must_use]
pub fn topic(root: &str, id: &str) -> String {
    format!("{root}{PLACE}{id}")
}

/// Returns whether `topic` is that of a marker, which is neither an event nor of interest to
/// people.
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
