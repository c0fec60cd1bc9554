//! Why a connection ended: for now, or for good.

use rumqttc::v5::mqttbytes::Error as WireError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};

use crate::error::{Error, Kind};
use crate::net::mqtt::Failure;

/// Tells passing failures from lasting ones.
pub(super) fn failure(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::ConnectionRefused(code) => turned_away(*code),
        ConnectionError::MqttState(state) => broken(state),
        ConnectionError::Tls(rumqttc::v5::TlsError::Io(e)) | ConnectionError::Io(e) => io(e),
        ConnectionError::Tls(e) => {
            Failure::Fatal(Error::new(Kind::Unavailable, format!("TLS failed: {e}")))
        }
        ConnectionError::Timeout(_) => Failure::Passing("no answer in time".into()),
        ConnectionError::NotConnAck(_) => {
            Failure::Passing("what answers there does not speak MQTT 5".into())
        }
        other => Failure::Passing(other.to_string()),
    }
}

fn turned_away(code: ConnectReturnCode) -> Failure {
    use ConnectReturnCode as Code;
    let fatal = |kind, cause: &str| Failure::Fatal(Error::new(kind, cause));
    match code {
        Code::BadUserNamePassword => fatal(Kind::NotAuthorised, "bad user name or password"),
        Code::NotAuthorized => fatal(
            Kind::NotAuthorised,
            "not authorised: user name, password or certificate are not accepted",
        ),
        Code::Banned => fatal(Kind::NotAuthorised, "banned"),
        Code::BadAuthenticationMethod => {
            fatal(Kind::NotAuthorised, "authentication method not supported")
        }
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => {
            fatal(Kind::Unavailable, "the broker does not speak MQTT 5")
        }
        Code::ServiceUnavailable
        | Code::ServerUnavailable
        | Code::ServerBusy
        | Code::QuotaExceeded
        | Code::ConnectionRateExceeded => Failure::Passing(format!("the broker says {code:?}")),
        other => fatal(Kind::Unavailable, &format!("the broker refuses: {other:?}")),
    }
}

fn broken(state: &StateError) -> Failure {
    match state {
        StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        } => Failure::TakenOver,
        StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::NotAuthorized,
            ..
        } => Failure::Fatal(Error::new(
            Kind::NotAuthorised,
            "the broker has disconnected us: not authorised",
        )),
        StateError::ServerDisconnect { reason_code, .. } => {
            Failure::Passing(format!("the broker has disconnected us: {reason_code:?}"))
        }
        StateError::OutgoingPacketTooLarge { pkt_size, max }
        | StateError::Deserialization(WireError::OutgoingPacketTooLarge { pkt_size, max }) => {
            Failure::Fatal(Error::data(format!(
                "the message has {pkt_size} bytes, the broker takes {max}"
            )))
        }
        StateError::Io(e) | StateError::Deserialization(WireError::Io(e)) => io(e),
        StateError::ConnectionAborted => {
            Failure::Passing("the broker has closed the connection".into())
        }
        StateError::AwaitPingResp => {
            Failure::Passing("the broker has not answered within the keep-alive".into())
        }
        other => Failure::Passing(other.to_string()),
    }
}

fn io(error: &std::io::Error) -> Failure {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => Failure::Fatal(Error::new(
            Kind::NotAuthorised,
            format!("the broker does not accept our TLS certificate or settings: {alert:?}"),
        )),
        Some(e) => Failure::Fatal(Error::new(Kind::Unavailable, format!("TLS failed: {e}"))),
        None => Failure::Passing(error.to_string()),
    }
}
