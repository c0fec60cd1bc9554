//! Bounds the memory of a message: its packet is trimmed to the parts that Tael reads.
//!
//! The library decodes the whole packet. Five bytes of an empty user property become 48 bytes, and
//! seven of a short one more than a hundred. Topic and payload are slices that keep the whole
//! packet, and the buffer it was read into, alive.

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tracing::debug;

use crate::model::message::property;

/// Maximum number of known user properties to keep of a message, and of others.
const MAX_PROPERTIES: usize = 64;

/// Maximum number of subscription identifiers to keep of a message.
const MAX_IDENTIFIERS: usize = 64;

/// Maximum size of unknown user properties to keep of a message, bytes of all names and values:
/// `tael watch --json` shows them.
const MAX_FOREIGN_BYTES: usize = 16 * 1024;

/// Maximum size of a slice that is always copied, bytes.
const SMALL: usize = 4 * 1024;

/// Drops unread parts of `publish`, and copies parts that are much smaller than its packet.
pub(super) fn trim(publish: &mut Publish) {
    let packet = publish.size();
    if let Some(properties) = &mut publish.properties {
        trim_properties(properties, &publish.topic);
        let data = properties.correlation_data.as_ref();
        properties.correlation_data = data.map(|data| own(data, packet));
    }
    publish.topic = own(&publish.topic, packet);
    publish.payload = own(&publish.payload, packet);
}

fn trim_properties(properties: &mut PublishProperties, topic: &Bytes) {
    let identifiers = properties.subscription_identifiers.iter().copied();
    properties.subscription_identifiers = identifiers.take(MAX_IDENTIFIERS).collect();
    properties.content_type = None;
    let all = std::mem::take(&mut properties.user_properties);
    let came = all.len();
    // `into_iter().collect()` of Vec would keep the old allocation.
    let mut kept: Vec<(String, String)> = Vec::new();
    let (mut known, mut foreign, mut bytes) = (0, 0, 0);
    for (name, value) in all {
        let keep = if property::is_known(&name) {
            // Only the first of a name is read.
            known < MAX_PROPERTIES && kept.iter().all(|(other, _)| *other != name)
        } else {
            bytes += name.len() + value.len();
            foreign += 1;
            foreign <= MAX_PROPERTIES && bytes <= MAX_FOREIGN_BYTES
        };
        if keep {
            known += usize::from(property::is_known(&name));
            kept.push((name, value));
        }
    }
    if kept.len() < came {
        debug!(
            "left out {} of {came} user properties of a message on '{}': at most \
             {MAX_PROPERTIES} that Tael knows are read, and as many others",
            came - kept.len(),
            topic.escape_ascii()
        );
    }
    properties.user_properties = kept;
}

/// Returns `part` of a packet of `packet` bytes; copied, if it would keep much more than itself
/// alive.
fn own(part: &Bytes, packet: usize) -> Bytes {
    if part.len() <= SMALL || part.len() * 2 < packet {
        Bytes::copy_from_slice(part)
    } else {
        part.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;

    fn publish(user: Vec<(String, String)>) -> Publish {
        let properties = PublishProperties {
            user_properties: user,
            subscription_identifiers: vec![1; 1000],
            content_type: Some("x".repeat(1000)),
            ..PublishProperties::default()
        };
        Publish::new("t", QoS::AtMostOnce, "p", Some(properties))
    }

    fn kept(user: Vec<(String, String)>) -> PublishProperties {
        let mut publish = publish(user);
        trim(&mut publish);
        publish.properties.expect("properties")
    }

    fn pair(name: impl Into<String>, value: impl Into<String>) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn known_properties_survive_any_number_of_others() {
        let mut user = vec![pair("a", "b"); 100_000];
        user.insert(2, pair(property::ID, "1"));
        user.insert(3, pair(property::ID, "2"));
        user.push(pair(property::TRACEPARENT, "3"));
        let kept = kept(user);
        let ids: Vec<_> = kept
            .user_properties
            .iter()
            .filter(|(name, _)| property::is_known(name))
            .collect();
        assert_eq!(
            ids,
            [&pair(property::ID, "1"), &pair(property::TRACEPARENT, "3")]
        );
        assert_eq!(kept.user_properties.len(), MAX_PROPERTIES + 2);
        assert!(kept.user_properties.capacity() <= MAX_PROPERTIES * 3);
        assert!(kept.content_type.is_none());
        assert_eq!(kept.subscription_identifiers.len(), MAX_IDENTIFIERS);
    }

    #[test]
    fn foreign_properties_are_kept_up_to_a_size() {
        let long = "x".repeat(MAX_FOREIGN_BYTES - 1);
        let kept = kept(vec![
            pair("a", long.clone()),
            pair("b", "too much"),
            pair(property::WHO, "seq"),
        ]);
        assert_eq!(
            kept.user_properties,
            [pair("a", long), pair(property::WHO, "seq")]
        );
    }

    #[test]
    fn a_small_part_does_not_keep_its_packet() {
        let packet = Bytes::from(vec![0; 100_000]);
        let inside = |part: &Bytes| packet.as_ptr_range().contains(&part.as_ptr());
        assert!(!inside(&own(&packet.slice(..10), 100_000)));
        assert!(!inside(&own(&packet.slice(..40_000), 100_000)));
        assert!(inside(&own(&packet.slice(..60_000), 100_000)));
    }
}
