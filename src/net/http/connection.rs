//! One connection: requests one after another, each with its answer.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::net::http::body::{self, Outgoing};
use crate::net::http::io::Patient;
use crate::net::http::seat::Seat;
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
    let has_begun = AtomicBool::new(false);
    let each = service_fn(|request: Request<Incoming>| {
        has_begun.store(true, Ordering::Relaxed);
        let (service, seat, stop) = (Arc::clone(&service), Arc::clone(&seat), stopped.clone());
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let mut response = respond(request, peer, &*service, times, &seat).await;
            if response.body.is_stream()
                && let Err(full) = seat.lengthen()
            {
                response = full;
            }
            if seat.is_long() || seat.is_wanted() {
                response = response.last();
            }
            service.answered(response.status);
            Ok::<_, std::convert::Infallible>(converted(response, times, stop))
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
    let wanted = async {
        seat.wanted().await;
        if !has_begun.load(Ordering::Relaxed) {
            // Its request may be on the way.
            sleep(times.idle).await;
            seat.wanted().await;
        }
    };
    let ended = tokio::select! {
        // What has come is read before a connection counts as idle.
        biased;
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
        // A request that has begun is answered.
        () = wanted => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
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
    let _ = timeout(times.linger, drain(stream)).await;
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
    let hosts = parts.headers.get_all(HOST).iter().count();
    // RFC 9112, section 3.2.
    if hosts > 1 || (hosts == 0 && parts.version >= Version::HTTP_11) {
        return Response::error(400, "a request has one Host field").last();
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
    match body::read(body, times.body).await {
        Ok(body) => service.answer(head, body, seat).await,
        Err(refused) => refused.last(),
    }
}

fn body_is_empty(body: &Incoming) -> bool {
    hyper::body::Body::is_end_stream(body)
}

/// Returns the answer as the library writes it. Of a field that no header can have, there is none.
fn converted(
    response: Response,
    times: Times,
    stop: watch::Receiver<bool>,
) -> hyper::Response<Outgoing> {
    let mut converted = hyper::Response::new(Outgoing::new(response.body, times.alive, stop));
    *converted.status_mut() =
        StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in response.fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            converted.headers_mut().append(name, value);
        }
    }
    converted
}
