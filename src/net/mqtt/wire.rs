//! Converts our types to those of the library, and back.

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Connect, ConnectProperties, Filter as WireFilter, LastWill, Login, Packet, Publish,
    PublishProperties, RetainForwardRule, Subscribe as WireSubscribe, SubscribeProperties,
};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::topic::Filter;
use crate::net::mqtt::answer::Reason;
use crate::net::mqtt::trim::trim;
use crate::net::mqtt::{Ack, Audience, Failure, Received, Refused, Refuser, Settings, Subscribe};
use crate::net::options::MIN_KEEP_ALIVE;
use crate::net::password::Password;

/// Maximum number of subscription identifiers to read of a message.
const MAX_IDENTIFIERS: usize = 64;

/// Appends a packet to the output.
///
/// # Errors
/// When the library cannot encode it.
pub(super) fn put(packet: &Packet, output: &mut BytesMut) -> Result<()> {
    let wrong = |e| Error::bug(format!("encode an MQTT packet: {e}"));
    packet.write(output, None).map(drop).map_err(wrong)
}

/// Returns the CONNECT for `settings`, with a `plain` will on request.
///
/// # Errors
/// When the password cannot be read (78).
pub(super) fn connect(settings: &Settings, plain: bool) -> Result<Packet> {
    let broker = &settings.broker;
    let mut properties = ConnectProperties::new();
    let expiry = u32::try_from(settings.session_expiry.as_secs());
    properties.session_expiry_interval = Some(expiry.unwrap_or(u32::MAX));
    properties.max_packet_size = Some(settings.max_packet);
    properties.receive_maximum = Some(settings.receive_maximum);
    let keep_alive = broker.keep_alive.max(MIN_KEEP_ALIVE).as_secs();
    let connect = Connect {
        keep_alive: u16::try_from(keep_alive).unwrap_or(u16::MAX),
        client_id: broker.client_id.clone(),
        clean_start: settings.clean_start,
        properties: Some(properties),
    };
    let will = settings.will.as_ref().map(|will| LastWill {
        topic: Bytes::from(will.topic.clone()),
        message: will.payload.clone(),
        qos: if plain {
            QoS::AtMostOnce
        } else {
            wire_qos(will.qos)
        },
        retain: will.retain && !plain,
        properties: None,
    });
    let password = broker.password.as_ref().map(Password::reveal).transpose()?;
    let login = (broker.username.is_some() || password.is_some()).then(|| Login {
        username: broker.username.clone().unwrap_or_default(),
        password: password.map_or_else(String::new, |secret| secret.reveal().to_owned()),
    });
    Ok(Packet::Connect(connect, will, login))
}

/// Converts a PUBLISH into a message, trimmed to the parts that Tael reads.
///
/// # Errors
/// When it violates the protocol.
pub(super) fn received(mut publish: Publish) -> Result<Received, Failure> {
    let properties = publish.properties.as_ref();
    if properties.is_some_and(|properties| properties.topic_alias.is_some()) {
        // Remembered aliases could take 4 GB (MQTT 5.0, section 3.3.2.3.4).
        let cause = "the broker uses topic aliases, which the client does not offer";
        return Err(Failure::Passing(cause.into()));
    }
    let identifiers = properties.map(|properties| properties.subscription_identifiers.iter());
    let identifiers = identifiers.into_iter().flatten().take(MAX_IDENTIFIERS);
    let subscriptions = identifiers.copied().collect();
    trim(&mut publish);
    let ack = Ack {
        packet: publish.pkid,
        qos: publish.qos,
    };
    let properties = publish.properties.unwrap_or_default();
    Ok(Received {
        delivery: Delivery {
            topic: publish.topic,
            payload: publish.payload,
            retained: publish.retain,
            duplicate: publish.dup,
            packet: publish.pkid,
            properties: Properties {
                user: properties.user_properties,
                response_topic: properties.response_topic,
                correlation_data: properties.correlation_data,
                message_expiry: properties.message_expiry_interval,
            },
        },
        ack,
        subscriptions,
    })
}

pub(super) fn subscribe(id: u16, filters: &[&Filter], like: &Subscribe, qos: Qos) -> Packet {
    let retain_forward_rule = match like.retained {
        true => RetainForwardRule::OnEverySubscribe,
        false => RetainForwardRule::OnNewSubscribe,
    };
    let filters = filters.iter().map(|filter| WireFilter {
        retain_forward_rule: retain_forward_rule.clone(),
        ..WireFilter::new(filter.as_str(), wire_qos(qos))
    });
    Packet::Subscribe(WireSubscribe {
        pkid: id,
        filters: filters.collect(),
        properties: like.identifier.map(|n| SubscribeProperties {
            id: Some(n as usize),
            user_properties: Vec::new(),
        }),
    })
}

pub(super) fn wire_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

pub(super) fn wire_properties(properties: Properties) -> PublishProperties {
    PublishProperties {
        user_properties: properties.user,
        response_topic: properties.response_topic,
        correlation_data: properties.correlation_data,
        message_expiry_interval: properties.message_expiry,
        ..PublishProperties::default()
    }
}

pub(super) fn refused(kind: Kind, cause: &str) -> Refused {
    let error = Error::new(kind, format!("the broker refused it: {cause}"));
    Refused(error, Refuser::Broker)
}

/// Converts an acknowledgement into the result of its publish. A code that MQTT 5 does not name
/// refuses that message like one that it names (MQTT 5.0, section 2.4).
pub(super) fn published(reason: &Reason) -> Result<Audience, Refused> {
    if !reason.is_failure() {
        return Ok(audience(reason));
    }
    let kind = match reason.code {
        0x87 => Kind::NotAuthorised,
        // Unspecified and implementation specific errors, server busy, packet identifier in use,
        // receive maximum exceeded, message rate too high, quota exceeded: these pass.
        0x80 | 0x83 | 0x88 | 0x89 | 0x91 | 0x93 | 0x96 | 0x97 => Kind::TryAgain,
        _ => Kind::Data,
    };
    Err(refused(kind, &reason.to_string()))
}

/// Returns what an acknowledgement says of the subscribers.
pub(super) const fn audience(reason: &Reason) -> Audience {
    match reason.code {
        0x10 => Audience::None,
        _ => Audience::Possible,
    }
}

/// Converts the answer to a filter into the granted QoS.
pub(super) fn subscribed(reason: &Reason) -> Result<Qos> {
    if let Some(qos) = Qos::from_number(reason.code) {
        return Ok(qos);
    }
    let kind = match reason.code {
        0x80 | 0x87 => Kind::NotAuthorised,
        0x97 => Kind::TryAgain,
        _ => Kind::Unavailable,
    };
    Err(Error::new(kind, reason.to_string()))
}

/// Returns the size of `message` as a packet, bytes.
pub(super) fn size(message: &Message) -> usize {
    let mut publish = Publish::new(
        &message.topic,
        wire_qos(message.qos),
        message.payload.clone(),
        Some(wire_properties(message.properties.clone())),
    );
    publish.pkid = 1;
    publish.size()
}
