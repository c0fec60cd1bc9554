//! One connection: requests one after another, each with its answer.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::model::gateway::callers::host_of;
use crate::net::http::body::{self, Outgoing};
use crate::net::http::io::Patient;
use crate::net::http::seat::Seat;
use crate::net::http::table::Phase;
use crate::net::http::timer::Clock;
use crate::net::http::{Head, MAX_BODY, MAX_FIELDS, MAX_HEAD, Response, Service, Times};

/// Size of the buffer of a connection, bytes.
const BUFFER: usize = 4 * MAX_HEAD;

/// Maximum number of bytes that are read and dropped after the last answer.
const MAX_DROPPED: usize = 2 * MAX_BODY;

/// Serves the connection `stream` until its end, or until `stop` is true: then the present answer
/// is its last.
pub(super) async fn run<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Option<IpAddr>,
    service: Arc<S>,
    times: Times,
    mut stop: watch::Receiver<bool>,
    seat: Seat,
) {
    let seat = Arc::new(seat);
    let stopped = stop.clone();
    let each = service_fn(|request: Request<Incoming>| {
        seat.enter(Phase::Answer);
        let (service, seat, stop) = (Arc::clone(&service), Arc::clone(&seat), stopped.clone());
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let mut response = respond(request, peer, &*service, times, &seat).await;
            if response.body.is_stream()
                && let Err(full) = seat.lengthen()
            {
                response = full;
            }
            // From now on it is not moved.
            seat.send(response.body.length(), times.stall);
            if seat.is_long() || seat.is_wanted() {
                response = response.last();
            }
            service.answered(response.status);
            let end = end(stop, seat.ousted());
            Ok::<_, std::convert::Infallible>(converted(response, times, end))
        });
        answer
    });
    let mut connection = Builder::new()
        .half_close(true)
        .timer(Clock)
        .header_read_timeout(times.head)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .max_buf_size(BUFFER)
        .serve_connection(Patient::new(stream, times.stall, Arc::clone(&seat)), each);
    let ended = tokio::select! {
        // What has come is read before a connection gives way.
        biased;
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
        () = seat.ousted() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None if seat.is_ousted() && seat.phase().is_none_or(is_cut) => return,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            let rest = poll_fn(|cx| connection.poll_without_shutdown(cx));
            // It ends early, and its client has to read the end.
            match seat.is_ousted() {
                false => rest.await,
                true => match timeout(times.linger, rest).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                },
            }
        }
    };
    if let Err(e) = ended {
        debug!("connection of an HTTP client: {e}");
        // The library answers these itself.
        if e.is_parse() {
            service.answered(if e.is_parse_too_large() { 431 } else { 400 });
        }
    }
    let stream = connection.into_parts().io.into_inner();
    seat.enter(Phase::Closing);
    let mut closing = Box::pin(timeout(times.linger, drain(stream)));
    tokio::select! {
        biased;
        _ = &mut closing => return,
        () = seat.ousted() => {}
    }
    // Others get the place, and the client its answer.
    if let Some(permit) = seat.linger() {
        drop(seat);
        let _ = closing.await;
        drop(permit);
    }
}

/// Returns whether a connection that gives way in this phase is closed without an answer.
const fn is_cut(phase: Phase) -> bool {
    matches!(phase, Phase::Head | Phase::Unread)
}

/// Ends when the server stops, or the connection gives way.
async fn end(mut stop: watch::Receiver<bool>, ousted: impl Future<Output = ()>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = ousted => {}
    }
}

/// Says that nothing more comes, and reads what the client still sends. Bytes that are unread at the
/// close would make the kernel discard our answer.
pub(super) async fn drain(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut bytes = [0; 4096];
    let mut dropped = 0;
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        dropped += count;
        if dropped > MAX_DROPPED {
            return;
        }
    }
}

/// Returns the answer to one request.
async fn respond<S: Service>(
    request: Request<Incoming>,
    peer: Option<IpAddr>,
    service: &S,
    times: Times,
    seat: &Seat,
) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(refused) = check(&parts) {
        return refused.last();
    }
    let fields = parts.headers.iter();
    let head = Head {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        fields: fields
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        peer,
    };
    if let Err(refused) = service.admit(&head) {
        // Its body may still come, and is not read.
        return match body_is_empty(&body) {
            true => refused,
            false => refused.last(),
        };
    }
    if body_is_empty(&body) {
        return answer(service, head, Bytes::new(), times, seat).await;
    }
    seat.enter(Phase::Body);
    let body = tokio::select! {
        biased;
        body = body::read(body, times.body) => body,
        () = seat.ousted() => {
            let refused = Response::error(503, "the body is slow, and others wait");
            Err(refused.with("retry-after", "1"))
        }
    };
    seat.enter(Phase::Answer);
    match body {
        Ok(body) => answer(service, head, body, times, seat).await,
        Err(refused) => refused.last(),
    }
}

/// Checks what the library lets pass.
///
/// # Errors
/// The answer to a request without a host of its own (RFC 9112, section 3.2), or with a transfer coding that is
/// not known (section 6.1).
fn check(parts: &Parts) -> Result<(), Response> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().filter(|host| host_of(host).is_some()),
        (None, _) if parts.version < Version::HTTP_11 => Some(""),
        _ => None,
    };
    let Some(host) = host else {
        let cause = "a request has one Host field: NAME or NAME:PORT";
        return Err(Response::error(400, cause));
    };
    let authority = parts.uri.authority();
    if authority.is_some_and(|named| !named.as_str().eq_ignore_ascii_case(host)) {
        let cause = "the request names one host, and its Host field another";
        return Err(Response::error(400, cause));
    }
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    match codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        true => Ok(()),
        false => {
            let cause = "Transfer-Encoding is chunked, and nothing else";
            Err(Response::error(501, cause))
        }
    }
}

/// Returns the answer to a whole request. One that still waits for something when its connection has to give
/// way is refused.
async fn answer<S: Service>(
    service: &S,
    head: Head,
    body: Bytes,
    times: Times,
    seat: &Seat,
) -> Response {
    let late = async {
        seat.ousted().await;
        // It may know more.
        sleep(times.linger / 2).await;
    };
    tokio::select! {
        biased;
        response = service.answer(head, body, seat) => response,
        () = late => {
            let cause = "the answer takes long, and others wait; send the request again, with the same \
                         Idempotency-Key if it has one";
            Response::error(503, cause).with("retry-after", "1")
        }
    }
}

fn body_is_empty(body: &Incoming) -> bool {
    hyper::body::Body::is_end_stream(body)
}

/// Returns the answer as the library writes it. Of a field that no header can have, there is none.
fn converted(
    response: Response,
    times: Times,
    end: impl Future<Output = ()> + Send + 'static,
) -> hyper::Response<Outgoing> {
    let mut converted = hyper::Response::new(Outgoing::new(response.body, times.alive, end));
    *converted.status_mut() =
        StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in response.fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            converted.headers_mut().append(name, value);
        }
    }
    converted
}
