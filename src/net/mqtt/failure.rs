//! Causes of the end of a connection, passing and final.

use std::io;

use crate::error::{Error, Kind};
use crate::net::dial;
use crate::net::greeting;
use crate::net::mqtt::Failure;
use crate::net::mqtt::answer::Reason;
use crate::net::tls_failure;

/// The broker has refused us (MQTT 5.0, section 3.2.2.2; 3.1.1, section 3.2.2.3).
pub(super) fn turned_away(reason: &Reason, reference: Option<&str>) -> Failure {
    let fatal = |kind, cause: &str| {
        let text = reason
            .text
            .as_ref()
            .map_or_else(String::new, |text| format!(": '{text}'"));
        Failure::Fatal(Error::new(kind, format!("{cause}{text}")))
    };
    match reason.code {
        // The codes of MQTT 3.1.1 end at 5.
        0x01 | 0x84 => fatal(
            Kind::Unavailable,
            "the broker does not speak MQTT 5 (an MQTT 3.1.1 broker?): use one that does, such \
             as mosquitto from 1.6 on",
        ),
        0x03 | 0x88 | 0x89 | 0x97 | 0x9f => Failure::Passing(format!("the broker says: {reason}")),
        0x02 | 0x85 => fatal(
            Kind::Unavailable,
            "the broker does not accept the client identifier: choose another one by --id",
        ),
        0x04 | 0x86 => fatal(Kind::NotAuthorised, "bad user name or password"),
        0x05 | 0x87 => fatal(
            Kind::NotAuthorised,
            "not authorised: user name, password or certificate are not accepted",
        ),
        0x8a => fatal(Kind::NotAuthorised, "banned"),
        0x8c => fatal(Kind::NotAuthorised, "authentication method not supported"),
        0x9a | 0x9b => Failure::WillRefused(format!("the broker refuses the will: {reason}")),
        0x9c | 0x9d => {
            let server = reference.map_or_else(String::new, |server| {
                format!("; it names '{server}': give that by --broker")
            });
            fatal(
                Kind::Unavailable,
                &format!("the broker sends us elsewhere{server}"),
            )
        }
        _ => fatal(Kind::Unavailable, &format!("the broker refuses: {reason}")),
    }
}

/// The broker has sent DISCONNECT (MQTT 5.0, section 3.14.2.1).
pub(super) fn disconnected(reason: &Reason, reference: Option<&str>) -> Failure {
    match reason.code {
        0x8e => Failure::TakenOver,
        0x87 => Failure::Fatal(Error::new(
            Kind::NotAuthorised,
            format!("the broker has disconnected us: {reason}"),
        )),
        // A packet of ours was wrong: malformed packet, protocol error, topic name invalid, packet
        // too large, payload format invalid, retain and QoS not supported.
        0x81 | 0x82 | 0x90 | 0x95 | 0x99 | 0x9a | 0x9b => {
            Failure::Packet(format!("the broker has disconnected us: {reason}"))
        }
        _ => {
            let server = reference.map_or_else(String::new, |s| format!("; it names '{s}'"));
            Failure::Passing(format!("the broker has disconnected us: {reason}{server}"))
        }
    }
}

/// Reading or writing has failed; `host` is the other side.
pub(super) fn io(error: &io::Error, host: &str) -> Failure {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.map(|e| (tls_failure::explain(e, host), e)) {
        Some((Some(explained), _)) => Failure::Fatal(explained),
        Some((None, e)) => Failure::Passing(format!("TLS failed: {e}")),
        None => match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Failure::Cut(dial::cause(error)),
            _ => Failure::Passing(dial::cause(error)),
        },
    }
}

/// Recognises what answers CONNECT by its first bytes, if that is certainly not MQTT.
pub(super) fn stranger(bytes: &[u8]) -> Option<Failure> {
    let fatal = |cause: String| Some(Failure::Fatal(Error::new(Kind::Unavailable, cause)));
    match bytes {
        // A TLS record: alert or handshake, version 3.x (RFC 8446, section 5.1).
        [0x15 | 0x16, 0x03, ..] => fatal(
            "the port speaks TLS: use mqtts://, or --cafile with the broker's authority".into(),
        ),
        [b'H', b'T', b'T', b'P', b'/', ..] => fatal(
            "the port speaks HTTP (MQTT over WebSocket?): use the broker's port for plain \
             MQTT, usually 1883, or for TLS, usually 8883"
                .into(),
        ),
        [b'A', b'M', b'Q', b'P', ..] => {
            fatal("an AMQP server answers there: is the port right?".into())
        }
        // The first byte of CONNACK. Other servers greet with text.
        [0x20, ..] => None,
        _ => greeting::foreign("MQTT", bytes).and_then(fatal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: u8) -> Reason {
        Reason { code, text: None }
    }

    #[test]
    fn strangers_are_called_by_their_names() {
        for (bytes, word) in [
            (&b"\x15\x03\x03\x00\x02\x02\x46"[..], "TLS"),
            (b"HTTP/1.1 400 Bad Request\r\n", "WebSocket"),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
            (b"AMQP\x00\x00\x09\x01", "AMQP"),
            (b"220 mail.example ESMTP\r\n", "'220 mail.example ESMTP'"),
        ] {
            let Some(Failure::Fatal(e)) = stranger(bytes) else {
                panic!("{bytes:?} is no MQTT");
            };
            assert!(e.to_string().contains(word), "{e}");
        }
        // CONNACK, DISCONNECT, and incomplete answers.
        for bytes in [&[0x20, 3, 0, 0, 0][..], &[0xe0, 0], b"S", b""] {
            assert_eq!(stranger(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn what_passes_is_tried_again() {
        for code in [0x03, 0x88, 0x89, 0x97, 0x9f] {
            assert!(
                matches!(turned_away(&reason(code), None), Failure::Passing(_)),
                "{code:x}"
            );
        }
        for code in [
            0x01, 0x02, 0x04, 0x05, 0x80, 0x84, 0x86, 0x87, 0x8a, 0x9d, 0xee,
        ] {
            assert!(
                matches!(turned_away(&reason(code), None), Failure::Fatal(_)),
                "{code:x}"
            );
        }
        for code in [0x80, 0x89, 0x8b, 0x97, 0x98, 0xee] {
            assert!(
                matches!(disconnected(&reason(code), None), Failure::Passing(_)),
                "{code:x}"
            );
        }
        assert_eq!(disconnected(&reason(0x8e), None), Failure::TakenOver);
    }

    #[test]
    fn the_brokers_own_words_are_shown() {
        let reason = Reason {
            code: 0x87,
            text: Some("no such tenant".into()),
        };
        for failure in [turned_away(&reason, None), disconnected(&reason, None)] {
            let Failure::Fatal(e) = failure else {
                panic!("not authorised");
            };
            assert!(e.to_string().contains("'no such tenant'"), "{e}");
        }
    }
}
