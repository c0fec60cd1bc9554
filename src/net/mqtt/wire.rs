//! Our words in the library's, and back.

use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, Filter, LastWill, PubAckReason, PubRecReason, Publish, PublishProperties,
    RetainForwardRule, SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::net::mqtt::trim::trim;
use crate::net::mqtt::{Ack, Event, Failure, Received, Refused, Refuser, Settings, Subscribe};
use crate::net::options::MIN_KEEP_ALIVE;
use crate::net::tls;

/// A connection, TLS included, must stand within this time.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Publishes in flight at one time.
const OUTGOING_INFLIGHT: u16 = 64;

pub(super) fn options(settings: &Settings) -> Result<MqttOptions> {
    let broker = &settings.broker;
    // The library joins host and port with a colon.
    let host = match (broker.host.contains(':'), &broker.tls) {
        (true, None) => format!("[{}]", broker.host),
        _ => broker.host.clone(),
    };
    let mut options = MqttOptions::new(&broker.client_id, host, broker.port);
    if let Some(files) = &broker.tls {
        let config = tls::client_config(files)?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
    }
    if broker.username.is_some() || broker.password.is_some() {
        options.set_credentials(
            broker.username.as_deref().unwrap_or_default(),
            broker
                .password
                .as_ref()
                .map_or("", |secret| secret.reveal()),
        );
    }
    if let Some(will) = &settings.will {
        options.set_last_will(LastWill::new(
            &will.topic,
            will.payload.to_vec(),
            wire_qos(will.qos),
            will.retain,
            None,
        ));
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval =
        Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX));
    properties.max_packet_size = Some(settings.max_packet);
    properties.receive_maximum = Some(settings.receive_maximum);
    options
        .set_network_options(network)
        .set_connect_properties(properties)
        .set_clean_start(settings.clean_start)
        .set_keep_alive(broker.keep_alive.max(MIN_KEEP_ALIVE))
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_manual_acks(true)
        .set_outgoing_inflight_upper_limit(OUTGOING_INFLIGHT);
    Ok(options)
}

/// The event that a PUBLISH is: a message, or the end of a connection whose other side breaks
/// the protocol.
pub(super) fn received(mut publish: Publish) -> Event {
    let properties = publish.properties.as_ref();
    if properties.is_some_and(|properties| properties.topic_alias.is_some()) {
        // The library remembers each, up to 4 GB (MQTT 5.0, section 3.3.2.3.4).
        let cause = "the broker uses topic aliases, which the client does not offer";
        return Event::Failed(Failure::Passing(cause.into()));
    }
    trim(&mut publish);
    let ack = Ack {
        packet: publish.pkid,
        qos: publish.qos,
    };
    let properties = publish.properties.unwrap_or_default();
    Event::Received(Received {
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
        subscriptions: properties.subscription_identifiers,
    })
}

pub(super) fn subscribe(subscribe: &Subscribe) -> (Vec<Filter>, SubscribeProperties) {
    let retain_forward_rule = match subscribe.retained {
        true => RetainForwardRule::OnEverySubscribe,
        false => RetainForwardRule::OnNewSubscribe,
    };
    let filters = subscribe.filters.iter().map(|filter| Filter {
        retain_forward_rule: retain_forward_rule.clone(),
        ..Filter::new(filter.as_str(), wire_qos(subscribe.qos))
    });
    let properties = SubscribeProperties {
        id: subscribe.identifier.map(|n| n as usize),
        user_properties: Vec::new(),
    };
    (filters.collect(), properties)
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

pub(super) fn puback(reason: PubAckReason) -> Result<(), Refused> {
    match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
        PubAckReason::NotAuthorized => Err(refused(Kind::NotAuthorised, "not authorised")),
        PubAckReason::QuotaExceeded
        | PubAckReason::UnspecifiedError
        | PubAckReason::ImplementationSpecificError => {
            Err(refused(Kind::TryAgain, &format!("{reason:?}")))
        }
        other => Err(refused(Kind::Data, &format!("{other:?}"))),
    }
}

pub(super) fn pubrec(reason: PubRecReason) -> Result<(), Refused> {
    match reason {
        PubRecReason::Success | PubRecReason::NoMatchingSubscribers => Ok(()),
        PubRecReason::NotAuthorized => Err(refused(Kind::NotAuthorised, "not authorised")),
        PubRecReason::QuotaExceeded => Err(refused(Kind::TryAgain, "quota exceeded")),
        other => Err(refused(Kind::Data, &format!("{other:?}"))),
    }
}

pub(super) fn subscribed(code: &SubscribeReasonCode) -> Result<()> {
    let (kind, cause) = match code {
        SubscribeReasonCode::Success(_) => return Ok(()),
        SubscribeReasonCode::NotAuthorized => (Kind::NotAuthorised, "not authorised".to_owned()),
        SubscribeReasonCode::Failure => (Kind::NotAuthorised, "refused".to_owned()),
        SubscribeReasonCode::QuotaExceeded => (Kind::TryAgain, "quota exceeded".to_owned()),
        other => (Kind::Unavailable, format!("{other:?}")),
    };
    Err(Error::new(kind, cause))
}

/// The bytes that `message` takes as a packet.
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
