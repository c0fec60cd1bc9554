//! The client side of MQTT 5 after the broker has accepted us: packets and requests in, packets and
//! events out. It touches no socket.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Disconnect, DisconnectReasonCode, Packet, PingReq, PubAck, PubComp, PubRec, PubRel, Publish,
    Unsubscribe,
};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Message, Qos};
use crate::model::topic::Filter;
use crate::net::mqtt::answer::{self, Answer, Reason};
use crate::net::mqtt::failure::disconnected;
use crate::net::mqtt::offer::Offer;
use crate::net::mqtt::waiting::Waiting;
use crate::net::mqtt::wire::{self, published, put, received, wire_properties, wire_qos};
use crate::net::mqtt::{
    Audience, Event, Failure, Number, Refused, Refuser, Request, Subscribe, Token,
};

/// Maximum number of our publishes that wait for the answer of the broker.
const MAX_INFLIGHT: u16 = 64;

/// Maximum number of unacknowledged messages from the broker: it has no more identifiers (MQTT 5.0,
/// section 2.2.1). Some brokers treat Receive Maximum as a hint.
const MAX_UNACKNOWLEDGED: usize = 65_535;

/// Bytes of output above which a broker that causes further answers is dropped: it reads none.
const MAX_ANSWERS: usize = 1024 * 1024;

/// A publish that waits for its answer.
struct Flight {
    token: Token,
    qos: Qos,
    /// From the first answer of two.
    audience: Audience,
}

/// A SUBSCRIBE or UNSUBSCRIBE that waits for its answer, and the early result of each filter.
struct Asked {
    id: u16,
    number: Number,
    results: Vec<Option<Result<Qos>>>,
}

/// State of one connection.
pub(super) struct Protocol {
    /// Bytes to send.
    pub output: BytesMut,
    /// Events to report.
    pub events: VecDeque<Event>,
    /// Whether we have said goodbye.
    pub closing: bool,
    offer: Offer,
    inflight: HashMap<u16, Flight>,
    waiting: VecDeque<(Message, Token)>,
    /// Counts them, and the requests of the holder.
    count: Waiting,
    /// Publishes at QoS 0 that are not written yet.
    unwritten: Vec<Token>,
    asked: Vec<Asked>,
    last_id: u16,
    /// Number of messages from the broker that are not acknowledged.
    unacknowledged: usize,
}

impl Protocol {
    /// Returns the state of a connection that the broker has accepted with `offer`.
    pub fn new(offer: Offer, count: Waiting) -> Self {
        Self {
            output: BytesMut::new(),
            events: VecDeque::from([Event::Connected(offer.clone())]),
            closing: false,
            offer,
            inflight: HashMap::new(),
            waiting: VecDeque::new(),
            count,
            unwritten: Vec::new(),
            asked: Vec::new(),
            last_id: 0,
            unacknowledged: 0,
        }
    }

    /// Performs a request of the holder.
    pub fn request(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Publish(message, token) => self.publish(message, token),
            Request::Acknowledge(ack) => {
                let packet = match ack.qos {
                    QoS::AtMostOnce => return Ok(()),
                    QoS::AtLeastOnce => Packet::PubAck(PubAck::new(ack.packet, None)),
                    QoS::ExactlyOnce => Packet::PubRec(PubRec::new(ack.packet, None)),
                };
                self.unacknowledged = self.unacknowledged.saturating_sub(1);
                put(&packet, &mut self.output)
            }
            Request::Subscribe(subscribe) => self.subscribe(&subscribe),
            Request::Unsubscribe(filter, number) => self.unsubscribe(&filter, number),
            Request::Disconnect => {
                self.closing = true;
                let goodbye = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
                put(&Packet::Disconnect(goodbye), &mut self.output)
            }
        }
    }

    fn publish(&mut self, message: Message, token: Token) -> Result<()> {
        let window = self.offer.receive_maximum.min(MAX_INFLIGHT);
        let full = self.inflight.len() >= window.into();
        if (full || !self.waiting.is_empty()) && self.qos(&message) > Qos::AtMostOnce {
            self.waiting.push_back((message, token));
            return Ok(());
        }
        self.send(message, token)
    }

    fn qos(&self, message: &Message) -> Qos {
        message.qos.min(self.offer.maximum_qos)
    }

    fn send(&mut self, message: Message, token: Token) -> Result<()> {
        self.count.leave(message.memory());
        let qos = self.qos(&message);
        let publish = Publish {
            dup: false,
            retain: message.retain,
            qos: wire_qos(qos),
            topic: Bytes::from(message.topic),
            pkid: if qos == Qos::AtMostOnce { 0 } else { self.id() },
            payload: message.payload,
            properties: Some(wire_properties(message.properties)),
        };
        let (id, size) = (publish.pkid, publish.size());
        // Either would end the connection (MQTT 5.0, sections 3.2.2.3.5 and 3.2.2.3.6).
        let objection = if publish.retain && !self.offer.retain {
            Some("the broker keeps no retained messages".to_owned())
        } else if u32::try_from(size).is_ok_and(|size| size <= self.offer.maximum_packet) {
            None
        } else {
            let limit = self.offer.maximum_packet;
            Some(format!(
                "the message has {size} bytes, the broker takes {limit}"
            ))
        };
        if let Some(cause) = objection {
            let refused = Refused(Error::data(cause), Refuser::Local);
            self.events.push_back(Event::Published(token, Err(refused)));
            return Ok(());
        }
        put(&Packet::Publish(publish), &mut self.output)?;
        if qos == Qos::AtMostOnce {
            self.unwritten.push(token);
        } else {
            let audience = Audience::default();
            let flight = Flight {
                token,
                qos,
                audience,
            };
            self.inflight.insert(id, flight);
        }
        Ok(())
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Result<()> {
        let refused = |cause: &str| Err(Error::new(Kind::Unavailable, cause));
        let filters = subscribe.filters.iter();
        let objection = |filter| self.offer.objection(filter).map(refused);
        let results: Vec<_> = filters.clone().map(objection).collect();
        let kept = filters.zip(&results).filter(|(_, known)| known.is_none());
        let kept: Vec<_> = kept.map(|(filter, _)| filter).collect();
        let (id, number) = (self.id(), subscribe.number);
        self.asked.push(Asked {
            id,
            number,
            results,
        });
        if kept.is_empty() {
            self.subscribed(id, Vec::new());
            return Ok(());
        }
        let qos = subscribe.qos.min(self.offer.maximum_qos);
        put(
            &wire::subscribe(id, &kept, subscribe, qos),
            &mut self.output,
        )
    }

    fn unsubscribe(&mut self, filter: &Filter, number: Number) -> Result<()> {
        let mut unsubscribe = Unsubscribe::new(filter.as_str(), None);
        unsubscribe.pkid = self.id();
        self.asked.push(Asked {
            id: unsubscribe.pkid,
            number,
            results: Vec::new(),
        });
        put(&Packet::Unsubscribe(unsubscribe), &mut self.output)
    }

    fn answered(&mut self, id: u16) -> Option<Asked> {
        let place = self.asked.iter().position(|asked| asked.id == id)?;
        Some(self.asked.remove(place))
    }

    fn subscribed(&mut self, id: u16, reasons: Vec<Reason>) {
        let Some(asked) = self.answered(id) else {
            return;
        };
        let mut reasons = reasons.iter().map(wire::subscribed);
        let missing = || {
            Err(Error::new(
                Kind::Unavailable,
                "the broker has not answered for it",
            ))
        };
        let mut answer = || reasons.next().unwrap_or_else(missing);
        let results = asked.results.into_iter();
        let results = results.map(|known| known.unwrap_or_else(&mut answer));
        let event = Event::Subscribed(asked.number, results.collect());
        self.events.push_back(event);
    }

    /// Returns a packet identifier that is not in use (MQTT 5.0, section 2.2.1).
    fn id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.inflight.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Handles a whole packet, whose fixed header has `header` bytes.
    ///
    /// # Errors
    /// Why the connection must end.
    pub fn packet(&mut self, packet: BytesMut, header: usize) -> Result<(), Failure> {
        let kind = packet.first().copied().unwrap_or_default();
        let malformed = || {
            Failure::Passing(format!(
                "the broker sent something that is not MQTT 5: 0x{kind:02x}"
            ))
        };
        let bug = |e: Error| Failure::Passing(e.to_string());
        if kind >> 4 == 3 {
            let mut packet = packet;
            return match Packet::read(&mut packet, None) {
                Ok(Packet::Publish(publish)) => {
                    self.unacknowledged += usize::from(publish.qos != QoS::AtMostOnce);
                    if self.unacknowledged > MAX_UNACKNOWLEDGED {
                        let cause = "the broker sends messages without end and ignores their \
                                     acknowledgements";
                        return Err(Failure::Passing(cause.into()));
                    }
                    self.events.push_back(Event::Received(received(publish)?));
                    Ok(())
                }
                _ => Err(malformed()),
            };
        }
        if self.output.len() > MAX_ANSWERS && matches!(kind >> 4, 5 | 6) {
            let cause = "the broker asks for answers without end and reads none";
            return Err(Failure::Passing(cause.into()));
        }
        let body = packet.get(header..).unwrap_or_default();
        match answer::read(kind, body)
            .ok()
            .flatten()
            .ok_or_else(malformed)?
        {
            Answer::Puback(id, reason) => self.complete(id, Qos::AtLeastOnce, published(&reason)),
            Answer::Pubrec(id, reason) if reason.is_failure() => {
                self.complete(id, Qos::ExactlyOnce, published(&reason))
            }
            Answer::Pubrec(id, reason) => {
                if let Some(flight) = self.inflight.get_mut(&id) {
                    flight.audience = wire::audience(&reason);
                }
                put(&Packet::PubRel(PubRel::new(id, None)), &mut self.output).map_err(bug)
            }
            Answer::Pubcomp(id, reason) => self.complete(id, Qos::ExactlyOnce, published(&reason)),
            // Unknown identifiers are answered too. Otherwise a broker that has kept our session
            // would send it without end (MQTT 5.0, section 4.3.3).
            Answer::Pubrel(id) => {
                put(&Packet::PubComp(PubComp::new(id, None)), &mut self.output).map_err(bug)
            }
            Answer::Suback(id, reasons) => {
                self.subscribed(id, reasons);
                Ok(())
            }
            Answer::Disconnect(reason, server) => Err(disconnected(&reason, server.as_deref())),
            Answer::Unsuback(id) => {
                let asked = self.answered(id);
                let event = asked.map(|asked| Event::Unsubscribed(asked.number));
                self.events.extend(event);
                Ok(())
            }
            Answer::Pong => Ok(()),
            Answer::Connack(..) => Err(malformed()),
        }
    }

    /// Handles the answer to publish `id`; an unknown one changes nothing.
    fn complete(
        &mut self,
        id: u16,
        qos: Qos,
        result: Result<Audience, Refused>,
    ) -> Result<(), Failure> {
        if self
            .inflight
            .get(&id)
            .is_none_or(|flight| flight.qos != qos)
        {
            return Ok(());
        }
        if let Some(flight) = self.inflight.remove(&id) {
            // The last answer to a message of QoS 2 does not repeat what the first has said.
            let result = result.map(|audience| match flight.audience {
                Audience::Possible => audience,
                none => none,
            });
            self.events
                .push_back(Event::Published(flight.token, result));
        }
        let window = self.offer.receive_maximum.min(MAX_INFLIGHT);
        while self.inflight.len() < window.into() {
            let Some((message, token)) = self.waiting.pop_front() else {
                break;
            };
            let sent = self.send(message, token);
            sent.map_err(|e| Failure::Passing(e.to_string()))?;
        }
        Ok(())
    }

    /// Sends a ping to the broker.
    pub fn ping(&mut self) -> Result<()> {
        put(&Packet::PingReq(PingReq), &mut self.output)
    }

    /// Notes that `count` bytes of the output were written.
    pub fn wrote(&mut self, count: usize) {
        self.output.advance(count);
    }

    /// Notes that the whole output was sent.
    pub fn flushed(&mut self) {
        let done = self.unwritten.drain(..);
        self.events
            .extend(done.map(|token| Event::Published(token, Ok(Audience::Possible))));
    }
}

#[cfg(test)]
mod tests;
