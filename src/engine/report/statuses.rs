//! How the pipeline's statuses leave: read from the ledger as there is room, tried again, set aside.

use tracing::{debug, error, warn};

use crate::engine::client::{Pipeline, now_ms};
use crate::engine::report::outbox::{Loss, MAX_BYTES, MAX_ROWS, MAX_WAITING, shown};
use crate::error::{Error, Result};
use crate::net::mqtt::Token;
use crate::store::ledger::Queued;

/// Number of dropped statuses after which that is said again.
const SAY_EVERY: u64 = 1000;

impl Pipeline {
    /// Publishes what may go out now.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub(crate) fn flush_outbox(&mut self) -> Result<()> {
        if let Some(after) = self.outbox.wants() {
            let (list, left) = self.reader.outbox(after, MAX_ROWS, MAX_BYTES)?;
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
            self.later.sent(seq, self.redelivery.known());
        }
        let redelivery = &mut self.redelivery;
        let sent = |token| redelivery.sent(token, now_ms());
        self.outbox.flush(&mut self.session, sent);
        Ok(())
    }

    /// The connection is gone: what was under way goes out again, but for what has ended too many
    /// connections.
    pub(crate) fn outbox_lost(&mut self) {
        let loss = match self.session.is_packet_at_fault() {
            true => Loss::Packet,
            false => Loss::Link,
        };
        if let Some(guilty) = self.outbox.lost(loss) {
            let status = shown(&guilty.message);
            error!("status on {status} is given up: it ends every connection that it is sent on");
            self.later.sent(guilty.seq, self.redelivery.known());
        }
    }

    /// The broker cannot take a publish for now.
    pub(crate) fn retry_status(&mut self, token: Token, cause: &Error) {
        match self.outbox.retry(token) {
            None => debug!("a status has to wait: {cause}"),
            Some(guilty) => {
                error!("status on {} is given up: {cause}", shown(&guilty.message));
                self.later.sent(guilty.seq, self.redelivery.known());
            }
        }
        if !std::mem::replace(&mut self.refusing_statuses, true) {
            warn!("the broker cannot take a status for now: {cause}; trying on");
        }
    }
}
