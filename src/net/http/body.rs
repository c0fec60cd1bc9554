//! Bodies: what a client sends, within its limits, and what an answer holds.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use crate::net::http::{MAX_BODY, Response};

/// Memory reserved for a body before its bytes come, at most, bytes: a client may say a length and
/// send nothing.
const FIRST: u64 = 8 * 1024;

/// The body of an answer.
pub(super) struct Whole(Option<Bytes>);

impl Whole {
    pub(super) fn new(body: Bytes) -> Self {
        Self((!body.is_empty()).then_some(body))
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.0.as_ref().map_or(0, Bytes::len);
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
