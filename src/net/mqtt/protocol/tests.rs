//! Packets and requests, and how the protocol handles them.

use super::*;
use crate::model::message::Properties;
use crate::net::mqtt::answer::frame;
use proptest::prelude::*;

fn message(qos: Qos, retain: bool) -> Message {
    Message {
        topic: "t".into(),
        payload: Bytes::from_static(b"{}"),
        qos,
        retain,
        properties: Properties::default(),
    }
}

fn packet(bytes: &[u8]) -> BytesMut {
    BytesMut::from(bytes)
}

/// Returns the results of publishes since the last call.
fn told(protocol: &mut Protocol) -> Vec<(u64, Option<Kind>)> {
    let events = protocol.events.drain(..);
    let publish = |event| match event {
        Event::Published(token, result) => {
            Some((token.0, result.err().map(|Refused(e, _)| e.kind())))
        }
        _ => None,
    };
    events.filter_map(publish).collect()
}

#[test]
fn codes_that_are_unknown_refuse_that_publish_only() {
    let mut protocol = Protocol::new(Offer::default(), Waiting::default());
    for token in 1..=4 {
        let publish = Request::Publish(message(Qos::AtLeastOnce, false), Token(token));
        protocol.request(publish).expect("publish");
    }
    for (answer, want) in [
        (&[0x40, 3, 0, 2, 0x95][..], (2, Some(Kind::Data))),
        (&[0x40, 4, 0, 1, 0xee, 0], (1, Some(Kind::Data))),
        (&[0x40, 3, 0, 3, 0x97], (3, Some(Kind::TryAgain))),
        (&[0x40, 2, 0, 4], (4, None)),
    ] {
        protocol.packet(packet(answer), 2).expect("goes on");
        assert_eq!(told(&mut protocol), [want]);
    }
    // A second answer, and an answer to nothing.
    for answer in [
        &[0x40, 2, 0, 4][..],
        &[0x70, 2, 0, 9],
        &[0x40, 2, 0xff, 0xff],
    ] {
        protocol.packet(packet(answer), 2).expect("goes on");
        assert_eq!(told(&mut protocol), []);
    }
}

#[test]
fn both_ways_of_exactly_once() {
    let mut protocol = Protocol::new(Offer::default(), Waiting::default());
    let publish = Request::Publish(message(Qos::ExactlyOnce, false), Token(7));
    protocol.request(publish).expect("publish");
    protocol.output.clear();
    protocol
        .packet(packet(&[0x50, 2, 0, 1]), 2)
        .expect("PUBREC");
    assert_eq!(protocol.output[..], [0x62, 2, 0, 1], "PUBREL");
    assert_eq!(told(&mut protocol), []);
    protocol
        .packet(packet(&[0x70, 2, 0, 1]), 2)
        .expect("PUBCOMP");
    assert_eq!(told(&mut protocol), [(7, None)]);
    // The broker completes a publish that an earlier process had received.
    protocol.output.clear();
    protocol
        .packet(packet(&[0x62, 2, 0, 9]), 2)
        .expect("PUBREL");
    assert_eq!(protocol.output[..], [0x70, 2, 0, 9], "PUBCOMP");
}

#[test]
fn no_more_is_under_way_than_the_broker_takes() {
    let offer = Offer {
        receive_maximum: 2,
        ..Offer::default()
    };
    let mut protocol = Protocol::new(offer, Waiting::default());
    for token in 1..=4 {
        let publish = Request::Publish(message(Qos::AtLeastOnce, false), Token(token));
        protocol.request(publish).expect("publish");
    }
    let sent = protocol.output.len();
    assert_eq!((protocol.inflight.len(), protocol.waiting.len()), (2, 2));
    protocol
        .packet(packet(&[0x40, 3, 0, 1, 0x97]), 2)
        .expect("PUBACK");
    assert_eq!(protocol.output.len(), sent / 2 * 3);
    assert_eq!(protocol.inflight.len(), 2);
}

#[test]
fn what_would_cost_the_connection_is_refused_here() {
    let offer = Offer {
        retain: false,
        maximum_packet: 60,
        maximum_qos: Qos::AtMostOnce,
        wildcards: false,
        ..Offer::default()
    };
    let mut protocol = Protocol::new(offer, Waiting::default());
    let large = Message {
        payload: Bytes::from(vec![b' '; 60]),
        ..message(Qos::AtLeastOnce, false)
    };
    for (message, token) in [(message(Qos::AtLeastOnce, true), 1), (large, 2)] {
        protocol
            .request(Request::Publish(message, Token(token)))
            .expect("publish");
    }
    assert_eq!(
        told(&mut protocol),
        [(1, Some(Kind::Data)), (2, Some(Kind::Data))]
    );
    assert!(protocol.output.is_empty());
    // At QoS 0 it is complete when it is written.
    let publish = Request::Publish(message(Qos::ExactlyOnce, false), Token(3));
    protocol.request(publish).expect("publish");
    assert_eq!(protocol.output[0], 0x30);
    assert_eq!(told(&mut protocol), []);
    protocol.flushed();
    assert_eq!(told(&mut protocol), [(3, None)]);
    let filter = |text: &str| Filter::new(text.to_owned()).expect("filter");
    let subscribe = Subscribe {
        number: 8,
        filters: vec![filter("a/+"), filter("b")],
        qos: Qos::AtLeastOnce,
        identifier: None,
        retained: true,
    };
    protocol
        .request(Request::Subscribe(subscribe))
        .expect("subscribe");
    let id = protocol.last_id.to_be_bytes();
    protocol
        .packet(packet(&[0x90, 4, id[0], id[1], 0, 0]), 2)
        .expect("SUBACK");
    let Some(Event::Subscribed(8, results)) = protocol.events.pop_front() else {
        panic!("answered");
    };
    assert!(results[0].is_err());
    assert_eq!(results[1], Ok(Qos::AtMostOnce));
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 2..60)) {
        let mut protocol = Protocol::new(Offer::default(), Waiting::default());
        if let Ok(Some((header, whole))) = frame(&bytes)
            && whole <= bytes.len()
        {
            let _ = protocol.packet(packet(&bytes[..whole]), header);
        }
    }
}

#[test]
fn a_broker_that_takes_no_answers_is_left() {
    for kind in [0x50, 0x62] {
        let mut protocol = Protocol::new(Offer::default(), Waiting::default());
        let flood = std::iter::repeat_with(|| protocol.packet(packet(&[kind, 2, 0, 1]), 2));
        let sent = flood.take(MAX_ANSWERS).take_while(Result::is_ok).count();
        assert!(sent < MAX_ANSWERS / 2, "{sent}");
    }
    let mut protocol = Protocol::new(Offer::default(), Waiting::default());
    let event = packet(&[0x32, 6, 0, 1, b't', 0, 1, 0]);
    for _ in 0..MAX_UNACKNOWLEDGED {
        protocol.packet(event.clone(), 2).expect("goes on");
    }
    let Some(Event::Received(received)) = protocol.events.pop_back() else {
        panic!("not told")
    };
    let acknowledge = Request::Acknowledge(received.ack);
    protocol.request(acknowledge).expect("acknowledge");
    protocol.packet(event.clone(), 2).expect("goes on");
    assert!(protocol.packet(event, 2).is_err());
}
