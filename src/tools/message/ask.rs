//! Questions over one connection: publishes them, prints the answers as they come, and asks again.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::event::{Attributes, attributes};
use crate::model::json;
use crate::model::message::Qos;
use crate::model::request::{Heard, Requests, Terms};
use crate::model::text::{escaped_json, printable};
use crate::model::topic::Filter;
use crate::net::mqtt::{Audience, Refused, Refuser, Settings, Token};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::os::logging::say;
use crate::os::signals::{self, Stop};
use crate::os::stdout::{ROOM, has_room};
use crate::tools::lines::MAX_LINE;
use crate::tools::message::standstill::{Turn, delay};
use crate::tools::message::{Draft, Options, Question, Task, sender, unheard};
use crate::tools::{MAX_PACKET, check_stdout, print, print_foreign};

/// Maximum number of unacknowledged answers from the broker.
const MAX_UNREAD: u16 = 256;

/// Maximum length of the error of an answer, characters.
const MAX_ERROR: usize = 1000;

/// Exit code after SIGINT or SIGTERM, as a shell reports SIGINT.
pub(super) const INTERRUPTED: u8 = 128 + 2;

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where the messages come from.
pub(super) enum Source {
    /// These attributes, once.
    One(Option<Attributes>),
    /// A line each, with more attributes.
    Lines(Receiver<Result<Bytes>>, Attributes),
}

impl Source {
    /// Returns the attributes of the next message. Cancel safe.
    async fn next(&mut self) -> Result<Option<Attributes>> {
        match self {
            Self::One(one) => Ok(one.take()),
            Self::Lines(lines, more) => match lines.recv().await {
                None => Ok(None),
                Some(line) => {
                    let mut attributes = attributes(&line?, MAX_LINE)
                        .map_err(|refusal| Error::data(refusal.to_string()))?;
                    attributes.extend(more.clone());
                    Ok(Some(attributes))
                }
            },
        }
    }
}

/// How it has ended.
pub(super) enum End {
    /// Each message is answered, or missing.
    Done,
    /// By SIGINT or SIGTERM.
    Interrupted,
    /// There was no broker for too long.
    Unreachable,
}

/// Messages, and those who answer them.
pub(super) struct Exchange<'a> {
    options: &'a Options,
    draft: Draft<'a>,
    terms: Terms,
    session: Session,
    source: Source,
    pub requests: Requests,
    /// Ids of the requests that the broker has not acknowledged.
    tokens: HashMap<Token, String>,
    begun: Instant,
    is_online: bool,
    /// Whether there was a connection.
    was_online: bool,
    /// Since when there is no connection.
    lost: Duration,
    /// The present turn of the loop.
    turn: Turn,
    /// Whether a signal ends us also while our output is not read.
    is_guarded: bool,
    /// Whether there is no further message.
    is_read: bool,
    /// Why no further message is read: the first cause.
    pub problem: Option<Error>,
    /// Whether it was said why a try is over: no client subscribes, or the broker has refused it.
    is_said: bool,
}

impl<'a> Exchange<'a> {
    /// Returns an exchange that has not begun to connect.
    ///
    /// # Errors
    /// 64 when the topic for answers is wrong.
    pub fn new(options: &'a Options, source: Source) -> Result<Self> {
        let (terms, topics) = match &options.task {
            Task::Ask(question) => {
                let terms = Terms {
                    answers: question.count,
                    timeout: options.timeout,
                    retries: question.retries,
                };
                let filter = Filter::new(&question.reply_topic).map_err(Error::usage)?;
                (terms, vec![filter])
            }
            Task::Publish(_) | Task::IfChanged { .. } => {
                let terms = Terms {
                    answers: 0,
                    timeout: options.timeout,
                    retries: 0,
                };
                (terms, Vec::new())
            }
        };
        let subscriptions = Subscriptions {
            required: topics,
            optional: Vec::new(),
            qos: Qos::AtLeastOnce,
        };
        let settings = Settings {
            max_packet: MAX_PACKET,
            receive_maximum: MAX_UNREAD,
            ..sender(&options.broker)
        };
        Ok(Self {
            options,
            draft: Draft::new(options),
            terms,
            session: Session::new(settings, subscriptions).announced(),
            source,
            requests: Requests::new(terms),
            tokens: HashMap::new(),
            begun: Instant::now(),
            is_online: false,
            was_online: false,
            lost: Duration::ZERO,
            turn: Turn::default(),
            is_guarded: false,
            is_read: false,
            problem: None,
            is_said: false,
        })
    }

    /// Returns the summary of what became of the messages.
    pub fn summary(&self) -> String {
        self.requests.tally().summary(&self.terms, self.now())
    }

    /// Returns the error of a broker that was away for too long.
    pub fn unreachable(&self) -> Error {
        self.session.unreachable(self.terms.patience())
    }

    /// Returns whether there was ever a connection.
    pub const fn was_online(&self) -> bool {
        self.was_online
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Sends the messages, and prints the answers.
    ///
    /// # Errors
    /// When another try would not help.
    pub async fn run(&mut self) -> Result<End> {
        let mut stop = Stop::listen(false)?;
        loop {
            self.send();
            if self.is_read && self.requests.is_empty() {
                return Ok(End::Done);
            }
            self.turn = Turn::new(self.now(), self.due(), self.terms.timeout);
            tokio::select! {
                biased;
                event = self.session.next() => {
                    self.stood_still();
                    self.happened(event?)?;
                }
                () = stop.requested() => return Ok(End::Interrupted),
                next = self.source.next(), if self.takes() => {
                    self.stood_still();
                    self.take(next);
                }
                () = sleep_until(self.begun + self.turn.wake()) => {
                    if self.stood_still() {
                        continue;
                    }
                    let now = self.now();
                    self.requests.tick(now);
                    if !self.is_online && now >= self.lost.saturating_add(self.terms.patience()) {
                        return Ok(End::Unreachable);
                    }
                }
            }
        }
    }

    /// Returns whether this process was stopped during the present turn. The time of that does not count.
    fn stood_still(&mut self) -> bool {
        let standstill = self.turn.standstill(self.now());
        if let Some(lost) = standstill {
            self.give_back(lost);
        }
        standstill.is_some()
    }

    /// Does not count the time `lost` in which this process could not read what came.
    fn give_back(&mut self, lost: Duration) {
        self.requests.postpone(delay(lost, self.terms.timeout));
        self.lost = self.lost.saturating_add(lost);
    }

    /// Makes sure that a signal ends us, if `bytes` may have to wait for a reader who does not read them. A
    /// short answer needs no thread for that.
    fn guard(&mut self, bytes: usize) -> Result<()> {
        if !self.is_guarded && (bytes > ROOM || !has_room()) {
            signals::give_up_after(FAREWELL)?;
            self.is_guarded = true;
        }
        Ok(())
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// Returns when a try or our patience with the broker is over.
    fn due(&self) -> Duration {
        let patience = self.lost.saturating_add(self.terms.patience());
        let patience = (!self.is_online).then_some(patience);
        let due = self.requests.due();
        patience
            .into_iter()
            .chain(due)
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// Returns whether to take another message. The time of a single question begins with us.
    fn takes(&self) -> bool {
        let may_begin = self.is_online || matches!(self.source, Source::One(_));
        may_begin && !self.is_read && self.requests.has_room()
    }

    fn take(&mut self, next: Result<Option<Attributes>>) {
        match next {
            Ok(Some(attributes)) => {
                let id = host::new_id();
                let message = self.draft.message(attributes, id.clone());
                let now = self.now();
                self.requests.begin(id, message, now);
            }
            Ok(None) => self.is_read = true,
            Err(error) => {
                let number = self.requests.begun() + 1;
                self.problem = Some(error.context(format_args!("send message {number}")));
                self.is_read = true;
            }
        }
    }

    /// Sends what can be sent.
    fn send(&mut self) {
        let now = self.now();
        while self.is_online
            && let Some((id, message)) = self.requests.to_send(now)
        {
            if let Some(token) = self.session.publish(message) {
                self.tokens.insert(token, id);
            } else {
                // There is room again after the next acknowledgement.
                self.requests.not_sent(&id);
                break;
            }
        }
    }

    fn happened(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Online => {
                (self.is_online, self.was_online) = (true, true);
                // The answers to those sent before may be lost; their ids are known.
                self.requests.send_again();
            }
            Event::Offline => {
                if std::mem::take(&mut self.is_online) {
                    self.lost = self.now();
                }
                self.tokens.clear();
            }
            Event::Published(token, result) => {
                let Some(id) = self.tokens.remove(&token) else {
                    return Ok(());
                };
                match result {
                    Ok(audience) => self.published(&id, audience),
                    // This try is over when its time is.
                    Err(Refused(e, Refuser::Broker))
                        if e.kind() == Kind::TryAgain && self.requests.has_tries(&id) =>
                    {
                        if !std::mem::replace(&mut self.is_said, true) {
                            warn!("{e}; trying again");
                        }
                    }
                    Err(Refused(e, _)) => {
                        let (topic, address) = (&self.options.topic, self.options.broker.address());
                        let e = e.context(format_args!("publish to '{topic}' at {address}"));
                        // The answers to the others still come.
                        let number = self.requests.refused(&id);
                        self.problem
                            .get_or_insert(match (number, self.options.lines) {
                                (Some(number), true) => {
                                    e.context(format_args!("send message {number}"))
                                }
                                _ => e,
                            });
                        self.is_read = true;
                    }
                }
            }
            Event::Received(received) => {
                self.session.acknowledge(&received.ack);
                let now = self.now();
                match self.requests.answered(received.delivery, now) {
                    Some(heard) => {
                        self.print(&heard)?;
                        let lost = self.now().saturating_sub(now);
                        self.give_back(lost);
                    }
                    None => debug!("a message that answers no question of ours; not taken"),
                }
            }
            Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
        }
        Ok(())
    }

    fn published(&mut self, id: &str, audience: Audience) {
        let matters = self.terms.answers > 0 || self.options.need_listener;
        let unheard = audience == Audience::None;
        self.requests.published(id, unheard && matters);
        if !unheard || self.options.retain {
            return;
        }
        if self.requests.tally().unheard {
            // The other messages would fare no better.
            self.is_read = true;
        } else if !std::mem::replace(&mut self.is_said, true) {
            let next = match matters {
                true => "; trying again",
                false => "",
            };
            warn!("no client subscribes to '{}'{next}", self.options.topic);
        }
    }

    /// Prints an answer.
    fn print(&mut self, heard: &Heard) -> Result<()> {
        let Task::Ask(question) = &self.options.task else {
            return Ok(());
        };
        let answer = &heard.answer;
        if question.json || self.options.lines {
            let number = self.options.lines.then_some(heard.number);
            let line = json::to_text(&answer.json(number, heard.after));
            let line = escaped_json(&line);
            self.guard(line.len())?;
            return print(&line);
        }
        self.guard(answer.reply.len())?;
        print_foreign(&answer.reply)?;
        // The next answer begins on a line of its own; a single one is printed as it is.
        if question.count > 1 && !answer.reply.is_empty() && !answer.reply.ends_with(b"\n") {
            print("")?;
        }
        let from = answer.from().unwrap_or_else(|| "the answer".to_owned());
        if let Some(error) = &answer.error {
            say(&printable(&format!("{from}: {error}"), MAX_ERROR));
        }
        if let Some(size) = &answer.truncated {
            let got = answer.reply.len();
            let said = format!("{from}: the answer is cut to {got} of {size} bytes");
            say(&printable(&said, MAX_ERROR));
        }
        Ok(())
    }
}

/// Asks one question, and returns the code of the answer.
///
/// # Errors
/// 69 when no broker could be reached or no client subscribes, 75 when answers are missing.
pub(super) async fn ask(options: &Options, question: &Question) -> Result<ExitCode> {
    check_stdout()?;
    let source = Source::One(Some(options.attributes.clone()));
    let mut exchange = Exchange::new(options, source)?;
    let end = match (exchange.run().await, exchange.problem.take()) {
        (Ok(End::Done), Some(problem)) => Err(problem),
        (end, _) => end,
    };
    let tally = exchange.requests.tally().clone();
    let result = match end {
        Err(error) => Err(error),
        Ok(End::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        Ok(End::Done | End::Unreachable) if !exchange.was_online() => Err(exchange.unreachable()),
        Ok(End::Done | End::Unreachable) if tally.unheard => Err(unheard(options)),
        Ok(End::Done) if tally.complete == 1 => Ok(ExitCode::from(tally.code)),
        Ok(End::Done | End::Unreachable) => {
            let came = match question.count {
                1 => "no answer".to_owned(),
                count => format!("{} of {count} answers", tally.answers),
            };
            let causes = "does a client with --reply listen there, does the message meet its --when, may it \
                          answer to ours (its --reply-to), and is its command done by then?";
            Err(too_late(options, &came, causes))
        }
    };
    exchange.close().await;
    result
}

/// Returns the error of a question of which only `came` has come in time, possibly because of `causes`.
pub(super) fn too_late(options: &Options, came: &str, causes: &str) -> Error {
    let tries = match &options.task {
        Task::Ask(Question { retries, .. }) if *retries > 0 => {
            format!(" for each of {} tries", u64::from(*retries) + 1)
        }
        _ => String::new(),
    };
    let (topic, address) = (&options.topic, options.broker.address());
    let within = duration::text(options.timeout);
    let cause = format!("ask '{topic}' at {address}: {came} within {within}{tries}; {causes}");
    Error::new(Kind::TryAgain, cause)
}
