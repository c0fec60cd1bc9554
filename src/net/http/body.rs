//! Bodies: what a client sends, within its limits, and what an answer holds.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as Frames, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::net::http::{MAX_BODY, Response, event};

/// Memory reserved for a body before its bytes come, at most, bytes: a client may say a length and
/// send nothing.
const FIRST: u64 = 8 * 1024;

/// The body of an answer.
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// All of it, part by part.
    Parts(Parts),
    /// What comes from a bounded channel, until it closes, the server stops, others need the
    /// connection, or the client leaves. The sender then finds the channel closed. It ends the connection.
    Stream {
        /// Where its bytes come from.
        bytes: mpsc::Receiver<Bytes>,
        /// Whether these are events: then [`event::ALIVE`] goes out after
        /// [`alive`](crate::net::http::Times::alive) without one.
        is_events: bool,
    },
}

/// Parts of a body whose length is known.
pub struct Parts {
    /// Bytes that are still to come.
    left: usize,
    next: Box<dyn FnMut() -> Option<Bytes> + Send>,
}

impl Parts {
    /// Returns those that `next` returns, of `length` bytes together. If they end before that, the connection
    /// does too.
    #[must_use]
    pub fn new(length: usize, next: impl FnMut() -> Option<Bytes> + Send + 'static) -> Self {
        Self {
            left: length,
            next: Box::new(next),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let part = (self.next)()?;
        self.left = self.left.saturating_sub(part.len());
        Some(part)
    }
}

impl Body {
    /// Returns the bytes of a whole body; of others there are none.
    #[must_use]
    pub fn whole(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Parts(_) | Self::Stream { .. } => &[],
        }
    }

    /// Returns its length; `None` if that is not known.
    pub(super) const fn length(&self) -> Option<usize> {
        match self {
            Self::Whole(bytes) => Some(bytes.len()),
            Self::Parts(parts) => Some(parts.left),
            Self::Stream { .. } => None,
        }
    }

    /// Returns whether it is a stream.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        matches!(self, Self::Stream { .. })
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => f.debug_tuple("Whole").field(bytes).finish(),
            Self::Parts(parts) => f.debug_tuple("Parts").field(&parts.left).finish(),
            Self::Stream { is_events, .. } => {
                let mut shown = f.debug_struct("Stream");
                shown.field("is_events", is_events).finish_non_exhaustive()
            }
        }
    }
}

/// A body on its way out.
pub(super) enum Outgoing {
    Whole(Option<Bytes>),
    Parts(Parts),
    Stream(Box<Stream>),
}

/// A stream on its way out.
pub(super) struct Stream {
    bytes: mpsc::Receiver<Bytes>,
    /// Ends when the stream ends early: the server stops, or others need the connection.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Runs while there is nothing to say, if something is said then.
    silence: Option<(Duration, Pin<Box<Sleep>>)>,
    has_ended: bool,
}

impl Outgoing {
    pub(super) fn new(
        body: Body,
        alive: Duration,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        match body {
            Body::Whole(bytes) => Self::Whole((!bytes.is_empty()).then_some(bytes)),
            Body::Parts(parts) => Self::Parts(parts),
            Body::Stream { bytes, is_events } => Self::Stream(Box::new(Stream {
                bytes,
                end: Box::pin(end),
                silence: is_events.then(|| (alive, Box::pin(sleep(alive)))),
                has_ended: false,
            })),
        }
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.has_ended || self.end.as_mut().poll(cx).is_ready() {
            self.has_ended = true;
            self.bytes.close();
            return Poll::Ready(None);
        }
        let next = match self.bytes.poll_recv(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                let silence = self.silence.as_mut();
                match silence.map(|(_, silence)| silence.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => Some(Bytes::from_static(event::ALIVE)),
                    _ => return Poll::Pending,
                }
            }
        };
        self.has_ended = next.is_none();
        if let Some((alive, silence)) = &mut self.silence {
            silence.as_mut().reset(Instant::now() + *alive);
        }
        Poll::Ready(next)
    }
}

impl Frames for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Parts(parts) => Poll::Ready(parts.take()),
            Self::Stream(stream) => stream.poll(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Parts(parts) => parts.left == 0,
            Self::Stream(stream) => stream.has_ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, Bytes::len),
            Self::Parts(parts) => parts.left,
            Self::Stream(_) => return SizeHint::default(),
        };
        SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}

/// Reads `body` within `limit`.
///
/// # Errors
/// The answer to a body that is too large, too slow or broken.
pub(super) async fn read(body: Incoming, limit: Duration) -> Result<Bytes, Response> {
    let large = || Response::error(413, &format!("the body has more than {MAX_BODY} bytes"));
    let most = u64::try_from(MAX_BODY).unwrap_or(u64::MAX);
    if body.size_hint().lower() > most {
        return Err(large());
    }
    match timeout(limit, collect(body)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(large()),
        Ok(Err(e)) => Err(Response::error(400, &format!("the body is broken: {e}"))),
        Err(_) => Err(Response::error(408, "the body has not come in time")),
    }
}

/// Returns the whole body; `None` if it is too large.
async fn collect(mut body: Incoming) -> Result<Option<Bytes>, hyper::Error> {
    let first = usize::try_from(body.size_hint().lower().min(FIRST)).unwrap_or_default();
    let mut whole = BytesMut::with_capacity(first);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        // Trailers mean nothing here.
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > MAX_BODY {
            return Ok(None);
        }
        whole.extend_from_slice(&data);
    }
    Ok(Some(whole.freeze()))
}
