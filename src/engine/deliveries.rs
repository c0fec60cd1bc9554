//! What comes from queues, and how much is taken from them.

use tracing::debug;

use crate::engine::chain::on_source;
use crate::engine::client::Client;
use crate::engine::commit::receipt::Receipt;
use crate::engine::intake::backlog::Load;
use crate::engine::intake::source::Source;
use crate::engine::queue::{Found, QueueEvent};
use crate::error::Result;

/// Offer: something has happened at a queue.
pub fn on_queue(client: &mut Client, event: (u32, QueueEvent)) {
    let (pipeline, steps) = (&client.pipeline, &mut client.steps);
    let found = client.queues.on_event(pipeline, event, steps);
    client.perform();
    found.into_iter().for_each(|found| on_found(client, found));
}

/// Continues with a message of a queue.
pub fn on_found(client: &mut Client, found: Found) {
    let (ack, unit) = match found {
        Found::Offer(message, ack) => {
            return on_source(client, Source::Queued(Box::new(message), ack));
        }
        Found::Again(ack, unit) => (ack, unit),
    };
    client.intake.counts.duplicates += 1;
    debug!(TAEL_UNIT = unit, "message came again; not run");
    let live = client.pipeline.reader.unfinished(&unit).ok().flatten();
    match live.filter(|_| ack.at_end) {
        Some(live) => {
            client.work.attach(Receipt::Queue(ack), vec![live]);
        }
        None => client.queues.ended(&ack, &unit),
    }
}

/// Says to the queues how much is taken now, and sends letters.
pub fn serve_queues(client: &mut Client) -> Result<()> {
    if !client.queues.has_any() {
        return Ok(());
    }
    let load = || Load::of(client.work.lanes(), client.commits.waiting());
    let is_full = !client.intake.has_room(&client.pipeline, load);
    let lanes = client.work.lanes();
    client.queues.update(&client.pipeline, lanes, is_full)
}
