//! A hint about bridges that drop the properties of messages.

use tracing::warn;

use crate::model::message::Delivery;
use crate::model::text::printable_bytes;

/// Whether the hint was given.
#[derive(Debug, Default)]
pub struct BridgeHint(bool);

impl BridgeHint {
    /// Logs, once, that a message of Tael has come without its properties.
    pub fn give(&mut self, delivery: &Delivery) {
        if std::mem::replace(&mut self.0, true) {
            return;
        }
        let topic = printable_bytes(&delivery.topic, 1024);
        warn!(
            TAEL_TOPIC = topic,
            "a message of Tael on '{topic}' came without its MQTT 5 properties: a bridge on its way \
             speaks MQTT 3.1.1, or its sender is older; a bridge of mosquitto keeps them with \
             'bridge_protocol_version mqttv50'"
        );
    }
}
