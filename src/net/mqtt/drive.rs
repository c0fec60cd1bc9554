//! Drives one connection: reaches the broker, then moves bytes between the socket, the protocol and
//! the holder, until one of them ends it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::Packet;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::error::{Error, Kind};
use crate::model::duration;
use crate::net::dial;
use crate::net::mqtt::answer::{self, Answer, frame};
use crate::net::mqtt::failure::{io as io_failure, stranger, turned_away};
use crate::net::mqtt::offer::Offer;
use crate::net::mqtt::protocol::Protocol;
use crate::net::mqtt::waiting::Waiting;
use crate::net::mqtt::wire::put;
use crate::net::mqtt::{Event, Failure, Progress, Request, inbox};
use crate::net::options::MIN_KEEP_ALIVE;
use crate::net::tls;
use crate::os::hooks;

/// Maximum time for the broker to close the connection after a goodbye.
const DRAIN: Duration = Duration::from_millis(500);

/// Maximum time to read what the broker has sent before it closed the connection.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Bytes in the output above which no further requests are taken.
const MAX_OUTPUT: usize = 256 * 1024;

/// Minimum number of bytes to read at once.
const READ: usize = 4096;

/// Maximum number of bytes to reserve at once for an incomplete packet.
const MAX_RESERVE: usize = 1024 * 1024;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}
type Stream = Box<dyn Wire>;

/// The broker and the settings of a connection.
pub(super) struct Plan {
    pub host: String,
    pub port: u16,
    /// Maximum time until the connection stands.
    pub limit: Duration,
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub connect: Packet,
    /// Whether it has a password and no user name.
    pub nameless: bool,
    /// Whether it has none of user name, password and certificate.
    pub anonymous: bool,
    pub keep_alive: Duration,
    /// Maximum size of a packet from the broker, bytes.
    pub max_packet: u32,
}

/// Connects, and serves the connection until it ends. The last event is the cause.
pub(super) async fn drive(
    plan: Plan,
    mut requests: mpsc::UnboundedReceiver<Request>,
    events: inbox::Sender,
    progress: Progress,
    waiting: Waiting,
) {
    let last = match reach(&plan).await {
        Err(failure) => Event::Failed(failure),
        Ok((stream, input, offer)) => {
            let keep_alive = keep_alive(&plan, &offer);
            progress.allow(keep_alive.max(MIN_KEEP_ALIVE) * 2);
            let (reader, writer) = split(stream);
            let mut link = Link {
                plan,
                reader,
                writer,
                input,
                protocol: Protocol::new(offer, waiting),
                keep_alive,
            };
            match link.serve(&mut requests, &events, &progress).await {
                Some(last) => last,
                // The holder is gone.
                None => return,
            }
        }
    };
    progress.waits_for_holder();
    events.send(last).await;
}

/// Returns the keep-alive interval. A broker may ask for a shorter one; a shorter one than it asks
/// for does no harm.
fn keep_alive(plan: &Plan, offer: &Offer) -> Duration {
    let theirs = offer.keep_alive.filter(|theirs| !theirs.is_zero());
    theirs.map_or(plan.keep_alive, |theirs| theirs.min(plan.keep_alive))
}

/// Runs one step of connecting with this `plan`, until `deadline`.
async fn step<T>(
    deadline: Instant,
    what: &str,
    plan: &Plan,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, step).await {
        Ok(done) => done.map_err(|e| io_failure(&e, &plan.host)),
        Err(_) => {
            let limit = duration::text(plan.limit);
            Err(Failure::Passing(format!(
                "{what}: no answer within {limit}"
            )))
        }
    }
}

/// Connects to the broker, which accepts us.
async fn reach(plan: &Plan) -> Result<(Stream, BytesMut, Offer), Failure> {
    let by = Instant::now() + plan.limit;
    let host = plan.host.as_str();
    let what = format!("look up '{host}'");
    let addresses = step(by, &what, plan, dial::lookup(host, plan.port)).await?;
    let tcp = step(by, "open a TCP connection", plan, dial::connect(addresses)).await?;
    let mut stream: Stream = match &plan.tls {
        None => Box::new(tcp),
        Some((config, name)) => {
            let talk = tls::connect(Arc::clone(config), name.clone(), tcp);
            Box::new(step(by, "agree on TLS", plan, talk).await.map_err(silent)?)
        }
    };
    let mut output = BytesMut::new();
    put(&plan.connect, &mut output).map_err(Failure::Fatal)?;
    let sent = async {
        stream.write_all(&output).await?;
        stream.flush().await
    };
    let sent = step(by, "send CONNECT", plan, sent).await;
    let mut input = BytesMut::new();
    let waiting = "wait for the answer to CONNECT";
    loop {
        if let Some(stranger) = stranger(&input) {
            return Err(stranger);
        }
        let malformed = || Failure::Passing("what answers there does not speak MQTT 5".into());
        if let Some((header, whole)) = frame(&input).map_err(|_| malformed())?
            && input.len() >= whole
        {
            let packet = input.split_to(whole);
            let kind = packet.first().copied().unwrap_or_default();
            let body = packet.get(header..).unwrap_or_default();
            return match answer::read(kind, body) {
                Ok(Some(Answer::Connack(reason, offer))) if reason.code == 0 => {
                    Ok((stream, input, offer))
                }
                Ok(Some(Answer::Connack(reason, offer))) => {
                    let failure = turned_away(&reason, offer.server_reference.as_deref());
                    Err(match plan {
                        _ if plan.nameless => hinted(failure, NAMELESS),
                        // Codes of MQTT 5.0 and 3.1.1.
                        _ if plan.anonymous && matches!(reason.code, 4 | 5 | 0x86 | 0x87) => {
                            hinted(failure, ANONYMOUS)
                        }
                        _ => failure,
                    })
                }
                Ok(Some(Answer::Disconnect(reason, server))) => {
                    Err(turned_away(&reason, server.as_deref()))
                }
                _ => Err(malformed()),
            };
        }
        if input.len() > plan.max_packet as usize {
            return Err(malformed());
        }
        input.reserve(READ);
        match step(by, waiting, plan, stream.read_buf(&mut input)).await {
            Ok(1..) => {}
            // If CONNECT could not be sent, that failure says more.
            closed => {
                return Err(match sent.err().or(closed.err()) {
                    None | Some(Failure::Cut(_)) => unanswered(plan),
                    Some(other) => other,
                });
            }
        }
    }
}

/// Hint for a client that has a password and no user name.
const NAMELESS: &str = "there is a password and no user name: give --username USER";

/// Hint for a client that does not say who it is.
const ANONYMOUS: &str = "no user name was given: give --username USER and --password-file FILE";

/// Adds the probable cause to the refusal of a client.
fn hinted(failure: Failure, hint: &str) -> Failure {
    match failure {
        Failure::Fatal(e) if e.kind() == Kind::NotAuthorised => {
            Failure::Fatal(Error::new(e.kind(), format!("{e}; {hint}")))
        }
        other => other,
    }
}

/// Explains a server that closes or resets the connection in the TLS handshake: most often it
/// speaks no TLS.
fn silent(failure: Failure) -> Failure {
    match failure {
        Failure::Cut(_) => Failure::Passing(
            "the connection was closed within the TLS handshake; does that port speak TLS?".into(),
        ),
        other => other,
    }
}

/// Explains a server that closes or resets the connection at CONNECT. A TLS server may reset it
/// before we have read its alert.
fn unanswered(plan: &Plan) -> Failure {
    let without = match plan.tls {
        Some(_) => "",
        None => " without TLS",
    };
    let hint = match plan.nameless {
        true => format!(" {NAMELESS}"),
        false => String::new(),
    };
    Failure::Passing(format!(
        "the connection was closed without an answer to CONNECT; does that port speak MQTT 5{without}, \
         and may this client connect?{hint}"
    ))
}

/// A connection to a broker.
struct Link {
    plan: Plan,
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    input: BytesMut,
    protocol: Protocol,
    keep_alive: Duration,
}

impl Link {
    /// Serves the connection. Returns the last event; `None` if the holder is gone.
    async fn serve(
        &mut self,
        requests: &mut mpsc::UnboundedReceiver<Request>,
        events: &inbox::Sender,
        progress: &Progress,
    ) -> Option<Event> {
        type Sending<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
        // An event for which the holder has no room yet. Nothing is read until it has.
        let mut sending: Option<Sending<'_>> = None;
        let mut flushed = true;
        let mut ping_at = Instant::now() + self.keep_alive;
        // Whether a ping is unanswered, and whether the reason may be that we did not read.
        let (mut silent, mut paused) = (false, false);
        loop {
            let mut failure = None;
            while sending.is_none() {
                if let Some(event) = self.protocol.events.pop_front() {
                    sending = events.try_send(event).map(|event| {
                        let sending: Sending<'_> = Box::pin(events.send(event));
                        sending
                    });
                } else {
                    match self.take_packet() {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) => {
                            failure = Some(e);
                            break;
                        }
                    }
                }
            }
            if let Some(failure) = failure {
                return Some(Event::Failed(failure));
            }
            if self.protocol.closing && self.protocol.output.is_empty() && flushed {
                self.drain().await;
                return Some(Event::Closed);
            }
            if sending.is_some() {
                paused = true;
                progress.waits_for_holder();
            } else {
                progress.made();
            }
            let room = self.protocol.output.len() < MAX_OUTPUT;
            let done: io::Result<()> = tokio::select! {
                biased;
                request = requests.recv(), if room => match request {
                    None => return None,
                    Some(request) => self.protocol.request(request).map_err(io::Error::other),
                },
                wrote = push(&mut self.writer, &self.protocol.output),
                    if !flushed || !self.protocol.output.is_empty() =>
                {
                    flushed = matches!(wrote, Ok(None));
                    wrote.map(|count| match count {
                        Some(count) => self.protocol.wrote(count),
                        None => self.protocol.flushed(),
                    })
                }
                taken = wait(&mut sending), if sending.is_some() => {
                    sending = None;
                    if !taken {
                        return None;
                    }
                    Ok(())
                }
                count = self.reader.read_buf(&mut self.input), if sending.is_none() => {
                    silent = false;
                    match count {
                        Ok(0) => {
                            let cause = "the broker has closed the connection";
                            return Some(Event::Failed(Failure::Cut(cause.into())));
                        }
                        other => other.map(drop),
                    }
                }
                () = sleep_until(ping_at) => {
                    if std::mem::replace(&mut silent, true) && !paused {
                        let cause = "the broker has not answered within the keep-alive";
                        return Some(Event::Failed(Failure::Passing(cause.into())));
                    }
                    paused = false;
                    ping_at = Instant::now() + self.keep_alive;
                    self.protocol.ping().map_err(io::Error::other)
                }
            };
            while let Some(time) = hooks::stall() {
                tokio::time::sleep(time).await;
            }
            if let Err(e) = done {
                if let Some(sending) = sending
                    && !sending.await
                {
                    return None;
                }
                return self.last_words(&e, events).await;
            }
        }
    }

    /// Handles the next packet of the input, if it is complete.
    fn take_packet(&mut self) -> Result<bool, Failure> {
        let malformed =
            |_| Failure::Passing("the broker sent something that is not an MQTT packet".into());
        let missing = match frame(&self.input).map_err(malformed)? {
            None => READ,
            Some((header, whole)) => {
                let limit = self.plan.max_packet;
                if u32::try_from(whole - header).is_ok_and(|size| size > limit) {
                    return Err(Failure::Passing(format!(
                        "the broker sent a packet of {whole} bytes, though it was told to send \
                         {limit} at most"
                    )));
                }
                if self.input.len() >= whole {
                    let packet = self.input.split_to(whole);
                    return self.protocol.packet(packet, header).map(|()| true);
                }
                whole - self.input.len()
            }
        };
        self.input.reserve(missing.clamp(READ, MAX_RESERVE));
        Ok(false)
    }

    /// Ends our side, and waits for the broker to end its own. A socket that is closed with unread
    /// data is reset, and our goodbye may be lost with it.
    async fn drain(&mut self) {
        let drained = async {
            let _ = self.writer.shutdown().await;
            loop {
                self.input.clear();
                self.input.reserve(READ);
                if !matches!(self.reader.read_buf(&mut self.input).await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = timeout(DRAIN, drained).await;
    }

    /// Reads what the broker sent before the connection failed with `error`: its reason is better.
    async fn last_words(&mut self, error: &io::Error, events: &inbox::Sender) -> Option<Event> {
        let by = Instant::now() + LAST_WORDS;
        loop {
            match self.take_packet() {
                Ok(true) => {}
                Ok(false) => {
                    let more = timeout_at(by, self.reader.read_buf(&mut self.input)).await;
                    if !matches!(more, Ok(Ok(1..))) {
                        return Some(Event::Failed(io_failure(error, &self.plan.host)));
                    }
                }
                Err(failure) => return Some(Event::Failed(failure)),
            }
            while let Some(event) = self.protocol.events.pop_front() {
                if !events.send(event).await {
                    return None;
                }
            }
        }
    }
}

/// Writes a part of `output`. When all is written, flushes, and returns `None`. Cancel safe.
async fn push(writer: &mut WriteHalf<Stream>, output: &[u8]) -> io::Result<Option<usize>> {
    if output.is_empty() {
        return writer.flush().await.map(|()| None);
    }
    match writer.write(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(Some(count)),
    }
}

/// Waits until an event has been taken.
async fn wait<F: Future<Output = bool> + Unpin>(sending: &mut Option<F>) -> bool {
    match sending {
        Some(sending) => sending.await,
        None => true,
    }
}
