//! Reading and writing of the library over a stream of the runtime, with a limit on clients that do
//! not read, and an eye on those that leave.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::http::MAX_HEAD;
use crate::net::http::seat::Seat;
use crate::net::http::table::Phase;

/// Maximum number of bytes to read at once.
const CHUNK: usize = 8 * 1024;

/// Maximum number of bytes that a client may send during a long answer, where no request follows.
const MAX_ASIDE: usize = 4 * MAX_HEAD;

/// A stream whose writes fail when the other side takes nothing for a while, or an answer too slowly. During a long answer
/// they fail too when the other side has closed.
pub(super) struct Patient<S> {
    stream: S,
    stall: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    seat: Arc<Seat>,
    /// Bytes that came during a long answer.
    aside: usize,
}

impl<S> Patient<S> {
    pub(super) const fn new(stream: S, stall: Duration, seat: Arc<Seat>) -> Self {
        Self {
            stream,
            stall,
            waiting: None,
            seat,
            aside: 0,
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Limits the time for which `polled`, a write, waits.
    fn limited<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        if self.seat.phase() == Some(Phase::Sending) {
            self.seat.enter(Phase::Unread);
        }
        let stall = Instant::now() + self.stall;
        let due = self.seat.due().map_or(stall, |due| due.min(stall));
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep_until(due)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> Patient<S> {
    /// Looks whether the client has left a long answer. The library does not read then.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.seat.has_asked() {
            return Ok(());
        }
        let mut bytes = [0; 512];
        loop {
            let mut own = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut own) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            self.aside += own.filled().len();
            if own.filled().is_empty() || self.aside > MAX_ASIDE {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> Read for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; CHUNK];
        let room = bytes.len().min(buf.remaining());
        let mut own = ReadBuf::new(bytes.get_mut(..room).unwrap_or_default());
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut own))?;
        if !own.filled().is_empty() && this.seat.phase() == Some(Phase::Idle) {
            this.seat.enter(Phase::Head);
        }
        buf.put_slice(own.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Patient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let polled = Pin::new(&mut own.stream).poll_write(cx, buf);
        own.limited(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let polled = Pin::new(&mut own.stream).poll_write_vectored(cx, bufs);
        own.limited(cx, polled)
    }

    /// Otherwise the library copies each answer.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        own.watch(cx)?;
        let polled = Pin::new(&mut own.stream).poll_flush(cx);
        let is_sent = matches!(polled, Poll::Ready(Ok(())));
        if is_sent && matches!(own.seat.phase(), Some(Phase::Sending | Phase::Unread)) {
            own.seat.enter(Phase::Idle);
        }
        own.limited(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let polled = Pin::new(&mut own.stream).poll_shutdown(cx);
        own.limited(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::model::gateway::rate::Caller;
    use crate::net::http::seat::Seats;

    /// Writes for ever, to a client that reads a little now and then; returns how that ends.
    async fn written(length: Option<usize>) -> Option<io::ErrorKind> {
        let stall = Duration::from_millis(300);
        let (own, mut other) = duplex(256);
        let seats = Seats::new(Arc::default());
        let seat = Arc::new(seats.take(Caller::Local).expect("place"));
        let mut patient = Patient::new(own, stall, Arc::clone(&seat));
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 64];
            while other.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                sleep(Duration::from_millis(50)).await;
            }
        });
        seat.send(length, stall);
        let writes = async {
            loop {
                let write = poll_fn(|cx| Pin::new(&mut patient).poll_write(cx, &[0; 64]));
                if let Err(e) = write.await {
                    return e.kind();
                }
            }
        };
        let ended = timeout(stall * 5, writes).await;
        reader.abort();
        ended.ok()
    }

    #[tokio::test]
    async fn an_answer_that_is_read_drop_by_drop_ends_and_a_stream_does_not() {
        assert_eq!(written(Some(64)).await, Some(io::ErrorKind::TimedOut));
        assert_eq!(written(None).await, None);
        assert_eq!(written(Some(64 * 1024 * 100)).await, None, "it has longer");
    }
}
