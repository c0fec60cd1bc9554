//! Messages of queues as they are received, and letters as they are sent.

use crate::model::letter::Letter;
use crate::model::queue_delivery::QueueDelivery;
use crate::model::signature::hex;
use crate::model::variables::from_hex;
use crate::net::amqp::properties::Head;
use crate::net::amqp::{Delivery, PERSISTENT, Properties, Publish, Table, Value};

/// Maximum length of a `message_id` that identifies a message, bytes. Longer ones do not fit into
/// AMQP's short string either.
const MAX_ID: usize = 255;

/// Maximum size of the properties that a dead letter keeps, bytes.
const MAX_PROPERTIES: usize = 64 << 10;

/// Headers with the number of earlier deliveries: RabbitMQ 4.3, and quorum queues.
const FENCES: [&str; 2] = ["x-acquired-count", "x-delivery-count"];

/// Headers with more queues for a message (RabbitMQ, "Sender-selected Distribution"). A dead letter with
/// them would go to those queues too, such as the one that it came from, and would run there again.
pub const ROUTES: [&str; 2] = ["CC", "BCC"];

/// Headers with what Tael passes on; the same names as in MQTT.
const HOPS: &str = "tael-hops";
const TRACEPARENT: &str = "traceparent";

fn number(headers: &Table, name: &str) -> Option<u64> {
    let value = headers.get(name)?;
    let text = || value.as_text()?.parse().ok();
    let number = value.as_integer().map(i64::unsigned_abs);
    number.or_else(text)
}

/// Returns a delivered message without its envelope.
pub fn message(delivery: Delivery) -> QueueDelivery {
    let properties = &delivery.properties;
    let headers = &properties.headers;
    let mut encoded = Vec::new();
    // What was read can be written.
    let written = properties.put(0, &mut encoded).is_ok();
    let properties_text = match written && encoded.len() <= MAX_PROPERTIES {
        true => hex(&encoded),
        false => String::new(),
    };
    let id = properties.message_id.clone();
    QueueDelivery {
        body: delivery.body,
        message_id: id.filter(|id| (1..=MAX_ID).contains(&id.len())),
        app_id: properties.app_id.clone(),
        reply_to: properties.reply_to.clone().filter(|to| !to.is_empty()),
        correlation_id: properties.correlation_id.clone(),
        redelivered: delivery.redelivered,
        fence: FENCES
            .iter()
            .find_map(|name| number(headers, name))
            .unwrap_or_default(),
        hops: number(headers, HOPS)
            .and_then(|hops| u32::try_from(hops).ok())
            .unwrap_or_default(),
        traceparent: headers
            .get(TRACEPARENT)
            .and_then(Value::as_text)
            .map(|text| text.into_owned()),
        properties: properties_text,
    }
}

/// Returns `letter` as it is published.
pub fn publish(letter: &Letter) -> Publish {
    let own = &letter.properties;
    let original = own.original.as_deref().and_then(from_hex);
    let head = original.and_then(|bytes| Head::read(&bytes).ok());
    let mut properties = head.map(|head| head.properties).unwrap_or_default();
    let set = |place: &mut Option<String>, text: &Option<String>| {
        if text.is_some() {
            place.clone_from(text);
        }
    };
    set(&mut properties.message_id, &own.message_id);
    set(&mut properties.correlation_id, &own.correlation_id);
    set(&mut properties.kind, &own.kind);
    set(&mut properties.content_type, &own.content_type);
    properties.delivery_mode = Some(PERSISTENT);
    // The broker refuses the user of another connection, and an old time to live.
    properties.user_id = None;
    properties.expiration = None;
    for name in ROUTES.iter().chain(&FENCES) {
        properties.headers.remove(name);
    }
    for (name, text) in &own.headers {
        let text = Value::Text(text.clone().into());
        properties.headers.set(name, text);
    }
    Publish {
        exchange: String::new(),
        routing_key: letter.key.clone(),
        mandatory: letter.dead,
        properties,
        body: letter.body.clone(),
    }
}

/// Returns the properties of a message of ours with JSON.
pub fn json() -> Properties {
    Properties {
        content_type: Some("application/json".to_owned()),
        ..Properties::default()
    }
}
