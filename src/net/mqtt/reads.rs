//! Few reads from the socket at a time, so that few packets are decoded at a time.
//!
//! The library decodes up to ten packets before it hands over the first, whatever their size. It
//! stops earlier when the socket has nothing for it, and a task of tokio that has used up its
//! budget gets nothing from any socket until its next turn.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::task::coop;

/// Budget of a task for one turn (tokio 1.54, `Budget::initial`).
const BUDGET: usize = 128;

/// Maximum number of reads from the socket in one turn: one for small packets that come together,
/// and one more to see that there is nothing else.
const READS: usize = 2;

/// Runs `future`, with at most [`READS`] reads from sockets a turn.
pub(super) async fn few_reads<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        for _ in READS..BUDGET {
            match coop::poll_proceed(context) {
                Poll::Ready(unit) => unit.made_progress(),
                // This turn's budget is used up already; the next turn comes at once.
                Poll::Pending => break,
            }
        }
        future.as_mut().poll(context)
    })
    .await
}
