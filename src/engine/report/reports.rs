//! Reports about units, and the answers of the broker to them.

use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::Pipeline;
use crate::engine::report::answer_room::AnswerRoom;
use crate::engine::report::last::LastEnd;
use crate::engine::report::outbox::{Loss, MAX_BYTES, MAX_ROWS, MAX_WAITING, Outbox, Waits, shown};
use crate::engine::report::status::without_passthrough;
use crate::error::{Error, Kind, Result};
use crate::model::answer;
use crate::model::duration;
use crate::model::message::{Message, property};
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Op, Queued};

/// Number of dropped statuses after which that is logged again.
const SAY_EVERY: u64 = 1000;

/// Statuses that are not published yet, and the last end. `T` identifies a publish.
#[derive(Debug)]
pub struct Reports<T> {
    outbox: Outbox<T>,
    room: AnswerRoom,
    /// The end of the last run.
    pub last: LastEnd,
    /// Whether it was logged that statuses cannot be published.
    unseen: bool,
    /// Whether it was logged that the broker cannot take statuses now.
    refusing: bool,
    /// Whether it was logged that refused statuses hold up others.
    blocked: bool,
}

impl<T: Copy + PartialEq> Reports<T> {
    /// Reads how many statuses wait, and the last end.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn open(pipeline: &Pipeline) -> Result<Self> {
        let reader = &pipeline.reader;
        Ok(Self {
            // The first flush reads them.
            outbox: Outbox::of_ledger(reader.waiting_messages()?),
            room: AnswerRoom::default(),
            last: LastEnd::read(reader)?,
            unseen: false,
            refusing: false,
            blocked: false,
        })
    }

    /// Returns how many statuses wait.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Returns whether all of them are in memory, so that there is room for some that can be asked for
    /// again.
    pub fn has_room(&self) -> bool {
        self.outbox.is_whole()
    }

    /// Returns `answer` as it may wait for the broker: without its output, if too much waits already.
    pub fn fit(&mut self, pipeline: &Pipeline, answer: Message) -> Message {
        // A failed read must not keep back output.
        let count = || pipeline.reader.outbox_bytes().unwrap_or(0);
        self.room.fit(answer, Instant::now(), count)
    }

    /// Returns whether some of them may go out soon on this connection.
    pub fn may_go_out(&self) -> bool {
        self.outbox.len() > self.outbox.refused() && !self.outbox.is_blocked()
    }

    /// Publishes again what the broker has refused: its operator may have changed the rules.
    pub fn try_again(&mut self) {
        self.outbox.try_again();
    }

    /// Adds statuses that were just committed.
    pub fn extend(&mut self, queued: Vec<Queued>) {
        self.outbox.extend(queued);
    }

    /// Returns when [`Reports::flush`] has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        self.outbox.wake()
    }

    /// Passes messages that may go out now to `publish`, read from the ledger as there is room.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn flush(
        &mut self,
        pipeline: &Pipeline,
        steps: &mut Steps,
        publish: impl FnMut(&Message) -> Option<T>,
    ) -> Result<()> {
        if let Some(after) = self.outbox.wants() {
            let (list, left) = pipeline.reader.outbox(after, MAX_ROWS, MAX_BYTES)?;
            self.outbox.load(list, left);
        }
        while let Some(Queued { seq, .. }) = self.outbox.overflow() {
            let dropped = self.outbox.dropped();
            if dropped % SAY_EVERY == 1 {
                warn!(
                    "more than {MAX_WAITING} statuses wait for the broker: the oldest are \
                     dropped, {dropped} so far"
                );
            }
            steps.push_back(Step::Sent(seq));
        }
        self.outbox.flush(publish);
        Ok(())
    }

    /// Notes that the connection is gone: messages in flight go out again, except a status that has
    /// ended too many connections.
    pub fn lost(&mut self, loss: Loss, steps: &mut Steps) {
        if let Some(guilty) = self.outbox.lost(loss) {
            let status = shown(&guilty.message);
            error!("status on {status} is given up: it ends every connection that it is sent on");
            steps.push_back(Step::Sent(guilty.seq));
        }
    }

    /// Notes the result of this publish.
    pub fn published(
        &mut self,
        pipeline: &Pipeline,
        name: T,
        result: Result<()>,
        steps: &mut Steps,
    ) {
        self.outbox.answered();
        if let Err(e) = &result
            && self.outbox.holds(name)
        {
            match e.kind() {
                Kind::TryAgain => return self.retry(pipeline, name, e),
                // Who asks names the topic of an answer, and must not fill the outbox with refused ones.
                Kind::NotAuthorised if !self.outbox.is_answer(name) => {
                    let waits = self.outbox.refuse(name);
                    waits.iter().for_each(|waits| say(pipeline, waits, e));
                    return self.note_blocked();
                }
                _ => {}
            }
        }
        let Some(Queued { seq, message }) = self.outbox.complete(name) else {
            if let Err(e) = result
                && !std::mem::replace(&mut self.unseen, true)
            {
                warn!(
                    "cannot publish the presence, the last end or an answer of '{}': {e}; 'tael \
                     status' may not show how it is",
                    pipeline.config.who
                );
            }
            return;
        };
        if let Err(e) = result {
            give_up(&message, &e, steps);
        }
        hooks::failpoint("publish.after");
        steps.push_back(Step::Sent(seq));
    }

    /// Sends a status again soon that the broker cannot take now.
    fn retry(&mut self, pipeline: &Pipeline, name: T, cause: &Error) {
        match self.outbox.retry(name) {
            None => debug!("a status has to wait: {cause}"),
            Some(waits) => say(pipeline, &waits, cause),
        }
        if !std::mem::replace(&mut self.refusing, true) {
            warn!("the broker cannot take a status for now: {cause}; trying again");
        }
        self.note_blocked();
    }

    /// Logs, once, that refused statuses hold up others.
    fn note_blocked(&mut self) {
        if self.outbox.is_blocked() && !std::mem::replace(&mut self.blocked, true) {
            warn!(
                "the broker refuses {} statuses: the others wait in the ledger until it takes some",
                self.outbox.refused()
            );
        }
    }
}

/// Gives up a message that the broker refuses, and sends what is left without the part that may be too
/// large.
fn give_up(message: &Message, cause: &Error, steps: &mut Steps) {
    let topic = &message.topic;
    let smaller = match answer::is_answer(message) {
        true => answer::without_output(message).inspect(|_| {
            warn!(target: SENDERS, "an answer on '{topic}' is sent without the output: {cause}");
        }),
        false => without_passthrough(message).inspect(|_| {
            warn!(target: SENDERS, "a status is published without its passthrough attributes: {cause}");
        }),
    };
    match smaller {
        Some(smaller) => steps.push_back(Step::Commit(Op::Post(smaller))),
        None => error!(target: SENDERS, "message on '{topic}' is given up: {cause}"),
    }
}

/// Logs, once for each status, that it is refused and waits.
fn say(pipeline: &Pipeline, waits: &Waits<'_>, cause: &Error) {
    if !waits.first {
        return;
    }
    let event = waits.message.properties.user(property::CAUSE);
    let units = event.map(|event| pipeline.reader.recent_units_of(event));
    // Several triggers may have run for the event.
    let unit = match units {
        Some(Ok(mut units)) if units.len() == 1 => units.pop(),
        _ => None,
    };
    warn!(
        TAEL_UNIT = unit.as_deref(),
        TAEL_EVENT = event,
        "status on '{}' waits: {cause}; it is published when the broker takes it: after the next \
         reload or connection, or in {}",
        waits.message.topic,
        duration::text(waits.delay)
    );
}
