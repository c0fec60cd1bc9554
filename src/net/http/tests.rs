//! The server in process: clients that are slow, broken or many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;

/// Maximum wait of a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with the request; refuses `/refused` before its body, and answers `/later` when told.
#[derive(Default)]
struct Echo {
    answers: AtomicU64,
    begun: Notify,
    go: Notify,
    /// Senders of the streams that were answered.
    streams: Mutex<Vec<mpsc::Sender<Bytes>>>,
}

impl Service for Echo {
    fn admit(&self, head: &Head) -> Result<(), Response> {
        match head.path.as_str() {
            "/refused" => Err(Response::error(403, "no")),
            _ => Ok(()),
        }
    }

    async fn answer(&self, head: Head, body: Bytes, seat: &Seat) -> Response {
        let stream = || {
            let (sender, bytes) = mpsc::channel(4);
            self.streams.lock().expect("lock").push(sender);
            bytes
        };
        match head.path.as_str() {
            "/stream" => return Response::stream("text/plain", stream()),
            "/events" => return Response::events(stream()),
            "/wait" => {
                if let Err(full) = seat.lengthen() {
                    return full;
                }
                // Dropped with the request.
                let _bytes = stream();
                self.begun.notify_one();
                self.go.notified().await;
            }
            "/later" => {
                self.begun.notify_one();
                self.go.notified().await;
            }
            "/parts" | "/broken" => {
                let count = if head.path == "/parts" { 5 } else { 3 };
                let mut parts = (0..count).map(|n| Bytes::from(vec![b'0' + n; 50_000]));
                let parts = Parts::new(250_000, move || parts.next());
                return Response::parts("text/plain", parts);
            }
            "/large" => return Response::new(200, "text/plain", vec![b'x'; 64 * MAX_BODY]),
            _ => {}
        }
        let body = String::from_utf8_lossy(&body);
        let Head {
            method,
            path,
            query,
            ..
        } = &head;
        Response::new(
            200,
            "text/plain",
            format!("<{method} {path}?{query} {body}>"),
        )
    }

    fn answered(&self, _: u16) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }
}

struct Server {
    address: String,
    echo: Arc<Echo>,
    counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(times: Times) -> Self {
        let any = Address::parse("127.0.0.1:0").expect("address");
        let listener = Listener::open(&any).await.expect("listener");
        let address = listener.address().to_string();
        let (echo, counts) = (Arc::<Echo>::default(), Arc::<Counts>::default());
        let (stop, stopped) = watch::channel(false);
        let server = serve(
            vec![listener],
            Arc::clone(&echo),
            times,
            Arc::clone(&counts),
            None,
            stopped,
        );
        let task = tokio::spawn(server);
        Self {
            address,
            echo,
            counts,
            stop,
            task,
        }
    }

    /// Starts a server that has little patience.
    async fn hasty() -> Self {
        Self::start(hasty_times()).await
    }

    /// Connects from another address of this host.
    async fn connect_from(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(from.parse().expect("address")).expect("bind");
        let address = self.address.parse().expect("address");
        socket.connect(address).await.expect("connect")
    }

    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        stream
    }

    /// Sends `bytes`, and returns all that comes until the server closes the connection.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes.as_ref()).await;
        rest(&mut stream).await
    }

    async fn wait_open(&self, count: u64) {
        let there = async {
            while self.counts.open.load(Ordering::Relaxed) != count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, there).await.expect("connections");
    }
}

fn hasty_times() -> Times {
    let short = Duration::from_millis(300);
    Times {
        head: short,
        queue: short,
        idle: short,
        rush: short,
        body: short,
        stall: short,
        alive: short,
        linger: short,
        stop: PATIENCE,
    }
}

/// Returns what comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    timeout(PATIENCE, read)
        .await
        .expect("an end")
        .expect("read");
    String::from_utf8(all).expect("text")
}

/// Returns what comes until `end`.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = String::new();
    let read = async {
        while !all.ends_with(end) {
            let byte = stream.read_u8().await.expect("more");
            all.push(char::from(byte));
        }
    };
    timeout(PATIENCE, read).await.expect("an answer");
    all
}

#[track_caller]
fn status(answer: &str, code: u16) {
    let start = answer.get(..12).unwrap_or(answer);
    assert!(
        start.starts_with("HTTP/1.") && start.ends_with(&code.to_string()),
        "{answer}"
    );
}

const POST: &str = "POST /a/b?c=d HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
const CHUNKED: &str = "POST /a/b?c=d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
    1\r\nb\r\n3;x=y\r\nody\r\n0\r\nTrailer: t\r\n\r\n";
const ANSWER: &str = "<POST /a/b?c=d body>";

#[tokio::test]
async fn a_request_may_be_split_at_every_byte() {
    let server = Server::start(Times::default()).await;
    for request in [POST, CHUNKED] {
        // All over one connection, which stays.
        let mut stream = server.connect().await;
        for at in 1..request.len() {
            let (first, second) = request.split_at(at);
            stream.write_all(first.as_bytes()).await.expect("first");
            stream.flush().await.expect("flush");
            // The server reads the first part alone.
            tokio::task::yield_now().await;
            sleep(Duration::from_millis(1)).await;
            stream.write_all(second.as_bytes()).await.expect("second");
            status(&until(&mut stream, ANSWER).await, 200);
        }
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).await.expect("byte");
            tokio::task::yield_now().await;
        }
        status(&until(&mut stream, ANSWER).await, 200);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(Times::default()).await;
    let mut stream = server.connect().await;
    let many: String = (0..20)
        .map(|n| {
            format!(
                "POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{}",
                n % 10
            )
        })
        .collect();
    stream.write_all(many.as_bytes()).await.expect("requests");
    let all = until(&mut stream, "<POST /19? 9>").await;
    let mut found = 0;
    for n in 0..20 {
        let answer = format!("<POST /{n}? {}>", n % 10);
        let at = all.find(&answer).expect("answer");
        assert!(at >= found, "{all}");
        found = at;
    }
}

#[tokio::test]
async fn old_clients_get_one_answer_and_the_end() {
    let server = Server::start(Times::default()).await;
    let answer = server.exchange("GET /old HTTP/1.0\r\n\r\n").await;
    status(&answer, 200);
    assert!(answer.ends_with("<GET /old? >"), "{answer}");
    // A client that has said all it says still gets its answer.
    let mut stream = server.connect().await;
    stream.write_all(POST.as_bytes()).await.expect("request");
    stream.shutdown().await.expect("shutdown");
    assert!(rest(&mut stream).await.ends_with(ANSWER));
    let head = server
        .exchange("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        head.ends_with("\r\n\r\n") && head.contains("content-length: 10"),
        "{head}"
    );
}

#[tokio::test]
async fn broken_requests_are_refused_and_end_their_connection() {
    let server = Server::start(Times::default()).await;
    for (fields, body, code) in [
        ("Host: x\r\nContent-Length: x", "", 400),
        ("Host: x\r\nContent-Length: -1", "", 400),
        ("Host: x\r\nContent-Length: +4", "body", 400),
        ("Host: x\r\nContent-Length: 4, 4", "body", 400),
        ("Host: x\r\nContent-Length: 99999999999999999999", "", 400),
        (
            "Host: x\r\nContent-Length: 4\r\nContent-Length: 5",
            "body",
            400,
        ),
        ("Host: x\r\nTransfer-Encoding: gzip", "", 400),
        ("Host: x\r\nTransfer-Encoding: chunked, gzip", "", 400),
        (
            "Host: x\r\nTransfer-Encoding: gzip, chunked",
            "0\r\n\r\nGET / HTTP/1.1\r\nHost: x",
            501,
        ),
        ("Host: x\r\nTransfer-Encoding: chunked", "x\r\n", 400),
        (
            "Host: x\r\nTransfer-Encoding: chunked",
            "4\r\nbodyx\r\n",
            400,
        ),
        (
            "Host: x\r\nTransfer-Encoding: chunked",
            "fffffffffffffffff\r\n",
            400,
        ),
        ("Host: x\r\nTransfer-Encoding: chunked", "-1\r\n", 400),
        ("Content-Length: 4", "body", 400),
        ("Host: x\r\nHost: y\r\nContent-Length: 4", "body", 400),
        ("Host: x\r\nno field", "", 400),
        ("Host: x\r\n folded: x", "", 400),
        ("Host : x", "", 400),
    ] {
        let request = format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n{body}");
        let answer = server.exchange(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code}")),
            "{request}: {answer}"
        );
        assert!(
            answer.matches("HTTP/1.1 ").count() == 1,
            "{request}: {answer}"
        );
    }
    for line in [
        "",
        "GET",
        "GET / HTTP/2.0",
        "GET  / HTTP/1.1",
        "G(T / HTTP/1.1",
        "\0\0\0",
    ] {
        let answer = server
            .exchange(format!("{line} x\r\nHost: x\r\n\r\n"))
            .await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{line}: {answer}"
        );
    }
    server.wait_open(0).await;
    for (request, code) in [
        ("GET / HTTP/1.0\r\n\r\n", 200),
        (
            "GET http://x/ HTTP/1.1\r\nHost: X\r\nConnection: close\r\n\r\n",
            200,
        ),
        ("GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET http://evil/ HTTP/1.0\r\n\r\n", 400),
    ] {
        status(&server.exchange(request).await, code);
    }
}

#[tokio::test]
async fn a_request_with_both_lengths_smuggles_none() {
    let server = Server::start(Times::default()).await;
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let next = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
        let request = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n0\r\n\r\n{next}");
        let answer = server.exchange(request).await;
        assert!(!answer.contains("smuggled"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    // A length that is too short makes the rest the next request, which is none.
    let short = POST.replace("Length: 4", "Length: 2");
    let answer = server.exchange(short + "\r\n\r\n").await;
    assert!(answer.contains("<POST /a/b?c=d bo>"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_client_hears_it() {
    let server = Server::start(Times::default()).await;
    // It is refused before it comes.
    let length = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    );
    let mut stream = server.connect().await;
    stream.write_all(length.as_bytes()).await.expect("head");
    status(&until(&mut stream, "}\n").await, 413);
    // Clients that send all of it first get the answer too.
    let large = "x".repeat(MAX_BODY + 1);
    status(&server.exchange(length.clone() + &large).await, 413);
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    status(&server.exchange(chunked.to_owned() + &chunk).await, 413);
    // The limit itself is allowed.
    let most = &large[1..];
    let request = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {MAX_BODY}\r\n\r\n{most}"
    );
    status(&server.exchange(request).await, 200);
    let field = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n",
        "a".repeat(MAX_HEAD)
    );
    status(&server.exchange(field).await, 431);
    let fields = format!(
        "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "A: b\r\n".repeat(MAX_FIELDS)
    );
    status(&server.exchange(fields).await, 431);
    // One that never ends.
    let line = format!("GET /{}", "a".repeat(MAX_HEAD * 2));
    let answer = server.exchange(line).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    server.wait_open(0).await;
    // All of them count, those that the library has refused itself included.
    assert_eq!(server.echo.answers.load(Ordering::Relaxed), 7);
}

#[tokio::test]
async fn what_is_refused_early_is_refused_without_its_body() {
    let server = Server::start(Times::default()).await;
    let head = "POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    let mut stream = server.connect().await;
    stream.write_all(head.as_bytes()).await.expect("head");
    let answer = rest(&mut stream).await;
    status(&answer, 403);
    assert!(answer.contains("connection: close"), "{answer}");
    // Without a body the connection stays.
    let mut stream = server.connect().await;
    for _ in 0..3 {
        let get = b"GET /refused HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(get).await.expect("request");
        status(&until(&mut stream, "}\n").await, 403);
    }
}

#[tokio::test]
async fn slow_clients_lose_their_connection_only() {
    let server = Server::hasty().await;
    // No request; half a head; a head byte by byte.
    assert_eq!(server.exchange("").await, "");
    assert_eq!(server.exchange("GET / HTTP/1.1\r\nHo").await, "");
    let mut stream = server.connect().await;
    let drip = async {
        while stream.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, drip).await.expect("closed");
    // Half a body, with and without a length.
    for fields in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        status(&server.exchange(head + "5\r\nb").await, 408);
    }
    // An answer that is not read.
    let mut stream = server.connect().await;
    let get = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(get).await.expect("request");
    // It has begun, and is given up then.
    until(&mut stream, "HTTP/1.1 200").await;
    server.wait_open(0).await;
    // An idle connection.
    let mut stream = server.connect().await;
    stream.write_all(POST.as_bytes()).await.expect("request");
    assert!(rest(&mut stream).await.ends_with(ANSWER));
}

/// Opens connections whose answers are not there until [`Echo::go`].
async fn busy(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut busy = Vec::new();
    for _ in 0..count {
        let mut stream = server.connect().await;
        let get = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(get).await.expect("request");
        let begun = timeout(PATIENCE, server.echo.begun.notified());
        begun.await.expect("begun");
        busy.push(stream);
    }
    busy
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_told_so() {
    let server = Server::start(Times {
        rush: PATIENCE,
        ..hasty_times()
    });
    let server = server.await;
    let mut open = busy(&server, MAX_CONNECTIONS).await;
    for n in 1..=3 {
        let answer = server.exchange(POST).await;
        status(&answer, 503);
        assert!(
            answer.contains("Retry-After: 1") && answer.ends_with("}\n"),
            "{answer}"
        );
        assert_eq!(server.counts.refused.load(Ordering::Relaxed), n);
    }
    // Their answers come, and make room.
    server.echo.go.notify_waiters();
    for stream in &mut open {
        status(&until(stream, "<GET /later? >").await, 200);
    }
    drop(open);
    status(&server.exchange(POST).await, 200);
}

#[tokio::test]
async fn answers_that_wait_for_something_leave_their_places_to_others() {
    let server = Server::start(Times::default()).await;
    let mut open = busy(&server, MAX_CONNECTIONS).await;
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream.write_all(POST.as_bytes()).await.expect("request");
        status(&until(&mut stream, ANSWER).await, 200);
    }
    assert_eq!(server.counts.refused.load(Ordering::Relaxed), 0);
    let long = server.counts.long.load(Ordering::Relaxed);
    assert!((1..=3).contains(&long), "{long}");
    // A client that has said everything still reads its answer, as in its old place.
    for stream in &mut open {
        stream.shutdown().await.expect("end");
    }
    sleep(Duration::from_millis(50)).await;
    server.echo.go.notify_waiters();
    for stream in &mut open {
        status(&until(stream, "<GET /later? >").await, 200);
    }
    drop(open);
    server.wait_open(0).await;
    assert_eq!(server.counts.long.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_answer_that_does_not_end_when_others_need_its_place_is_a_refusal() {
    let server = Server::start(Times::default()).await;
    let wait = "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..MAX_LONG {
        let mut stream = server.connect_from("127.0.0.2:0").await;
        stream.write_all(wait.as_bytes()).await.expect("request");
        let begun = server.echo.begun.notified();
        timeout(PATIENCE, begun).await.expect("begun");
        open.push(stream);
    }
    let mut own = server.connect().await;
    own.write_all(wait.as_bytes()).await.expect("request");
    let mut last = open.pop().expect("the last one");
    let answer = rest(&mut last).await;
    status(&answer, 503);
    assert!(answer.contains("retry-after: 1"), "{answer}");
    server.echo.go.notify_waiters();
    status(&until(&mut own, "<GET /wait? >").await, 200);
}

#[tokio::test]
async fn no_more_connections_wait_than_may() {
    let patient = Times {
        queue: PATIENCE,
        rush: PATIENCE,
        ..Times::default()
    };
    let server = Server::start(patient).await;
    let open = busy(&server, MAX_CONNECTIONS).await;
    let mut waiting = Vec::new();
    for _ in 0..MAX_QUEUED {
        let mut stream = server.connect().await;
        stream.write_all(POST.as_bytes()).await.expect("request");
        waiting.push(stream);
    }
    // It came after all of them.
    status(&server.exchange(POST).await, 503);
    assert_eq!(server.counts.refused.load(Ordering::Relaxed), 1);
    drop(open);
    server.echo.go.notify_waiters();
    for mut stream in waiting {
        status(&until(&mut stream, ANSWER).await, 200);
    }
    assert_eq!(server.counts.refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn idle_connections_make_room_for_those_that_wait() {
    let patient = Times {
        queue: PATIENCE,
        idle: Duration::from_millis(10),
        ..Times::default()
    };
    let server = Server::start(patient).await;
    let mut idle = Vec::new();
    for n in 0..MAX_CONNECTIONS {
        let mut stream = server.connect().await;
        // Browsers open some before they need them.
        if n % 2 == 0 {
            stream.write_all(POST.as_bytes()).await.expect("request");
            status(&until(&mut stream, ANSWER).await, 200);
        }
        idle.push(stream);
    }
    server
        .wait_open(u64::try_from(idle.len()).expect("number"))
        .await;
    let begun = tokio::time::Instant::now();
    // Each answer is the last one of its connection while others wait.
    let mut many = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        let mut stream = server.connect().await;
        stream.write_all(POST.as_bytes()).await.expect("request");
        many.push(stream);
    }
    for mut stream in many {
        status(&until(&mut stream, ANSWER).await, 200);
    }
    // Not because their time was up.
    assert!(
        begun.elapsed() < Times::default().head,
        "{:?}",
        begun.elapsed()
    );
    // Those that have answered lately may have stayed.
    drop(idle);
    assert_eq!(server.counts.refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_stop_ends_those_that_wait() {
    let server = Server::start(Times::default()).await;
    let open = busy(&server, MAX_CONNECTIONS).await;
    let mut waits = server.connect().await;
    waits.write_all(POST.as_bytes()).await.expect("request");
    // It was accepted after that one.
    let mut last = server.connect().await;
    last.write_all(POST.as_bytes()).await.expect("request");
    server.stop.send_replace(true);
    drop(open);
    server.echo.go.notify_waiters();
    for stream in [&mut waits, &mut last] {
        let answer = rest(stream).await;
        assert!(answer.is_empty() || answer.contains(" 503 "), "{answer}");
    }
    timeout(PATIENCE, server.task)
        .await
        .expect("end")
        .expect("task");
}

#[tokio::test]
async fn a_stop_lets_answers_end_and_closes_the_rest() {
    let server = Server::start(Times::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(POST.as_bytes()).await.expect("request");
    until(&mut idle, ANSWER).await;
    let mut busy = server.connect().await;
    let get = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n";
    busy.write_all(get).await.expect("request");
    timeout(PATIENCE, server.echo.begun.notified())
        .await
        .expect("begun");
    server.stop.send_replace(true);
    assert_eq!(rest(&mut idle).await, "");
    assert!(!server.task.is_finished(), "an answer is being made");
    server.echo.go.notify_one();
    assert!(rest(&mut busy).await.ends_with("<GET /later? >"));
    timeout(PATIENCE, server.task)
        .await
        .expect("end")
        .expect("task");
    assert!(TcpStream::connect(&server.address).await.is_err());
    assert_eq!(server.echo.answers.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_unix_socket_is_served_and_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("http");
    let address = Address::Unix(path.clone());
    let listener = Listener::open(&address).await.expect("listener");
    let second = Listener::open(&address).await.expect_err("it is taken");
    assert!(
        second.to_string().contains("another process listens there"),
        "{second}"
    );
    let (stop, stopped) = watch::channel(false);
    let server = serve(
        vec![listener],
        Arc::<Echo>::default(),
        Times::default(),
        Arc::default(),
        None,
        stopped,
    );
    let task = tokio::spawn(server);
    let mut stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connect");
    let get = b"GET /unix HTTP/1.0\r\n\r\n";
    stream.write_all(get).await.expect("request");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(PATIENCE, read)
        .await
        .expect("answer")
        .expect("text");
    assert!(answer.ends_with("<GET /unix? >"), "{answer}");
    stop.send_replace(true);
    timeout(PATIENCE, task).await.expect("end").expect("task");
    assert!(!path.exists());
}

impl Server {
    async fn wait_long(&self, count: u64) {
        let there = async {
            while self.counts.long.load(Ordering::Relaxed) != count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, there).await.expect("long answers");
    }

    /// Requests `path`, which is a stream, and returns it with its sender when its head has come.
    async fn stream(&self, path: &str) -> (TcpStream, mpsc::Sender<Bytes>) {
        let mut stream = self.connect().await;
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(get.as_bytes()).await.expect("request");
        let head = until(&mut stream, "\r\n\r\n").await;
        status(&head, 200);
        assert!(head.contains("connection: close"), "{head}");
        let sender = self.echo.streams.lock().expect("lock").pop();
        (stream, sender.expect("sender"))
    }
}

#[tokio::test]
async fn a_body_in_parts_has_a_length_and_may_end_early() {
    let server = Server::start(Times::default()).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let both = get("/parts") + "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let text = server.exchange(both).await;
    let (head, body) = text.split_once("\r\n\r\n").expect("head");
    assert!(head.contains("content-length: 250000"), "{head}");
    let (body, next) = body.split_at(250_000);
    assert!(body.starts_with("000") && body.ends_with("444"));
    assert!(next.contains("<GET /a? >"), "{next}");
    // The client sees that something is missing: another request is not answered.
    let text = server.exchange(get("/broken") + &get("/a")).await;
    assert!(text.contains("content-length: 250000"), "{text}");
    assert!(
        text.len() < 151_000 && !text.contains('<'),
        "{}",
        text.len()
    );
    // Of a HEAD there is no body.
    let head = "HEAD /parts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let head = server.exchange(head).await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_stream_comes_piece_by_piece() {
    let server = Server::start(Times::default()).await;
    let (mut stream, sender) = server.stream("/events").await;
    for n in 0..10 {
        let event = event::encoded("n", Some(n), &n.to_string());
        sender.send(event).await.expect("sent");
        // It is here before the next is made.
        let came = until(&mut stream, &format!("data: {n}\n\n\r\n")).await;
        assert!(came.contains(&format!("event: n\nid: {n}\n")), "{came}");
    }
    drop(sender);
    assert!(rest(&mut stream).await.ends_with("0\r\n\r\n"));
    // Old clients get the bytes, and the end is the end of the connection.
    let mut stream = server.connect().await;
    let get = b"GET /stream HTTP/1.0\r\n\r\n";
    stream.write_all(get).await.expect("request");
    until(&mut stream, "\r\n\r\n").await;
    let sender = server.echo.streams.lock().expect("lock").pop();
    let sender = sender.expect("sender");
    for text in ["a", "b"] {
        sender.send(text.into()).await.expect("sent");
        assert_eq!(until(&mut stream, text).await, text);
    }
    drop(sender);
    assert_eq!(rest(&mut stream).await, "");
    // Of a stream there is a head too.
    let head = server
        .exchange("HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    status(&head, 200);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    server.wait_long(0).await;
}

#[tokio::test]
async fn streams_leave_room_for_requests_and_have_a_limit() {
    let server = Server::start(Times::default()).await;
    let mut open = Vec::new();
    for _ in 0..MAX_LONG {
        open.push(server.stream("/events").await);
    }
    server.wait_long(MAX_LONG as u64).await;
    server.wait_open(0).await;
    for path in ["/events", "/stream", "/wait"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = server.exchange(request).await;
        status(&answer, 503);
        assert!(answer.contains("retry-after: 1"), "{answer}");
    }
    let mut short = server.connect().await;
    short.write_all(POST.as_bytes()).await.expect("request");
    status(&until(&mut short, ANSWER).await, 200);
    for (_, sender) in &open {
        sender.send("data: a\n\n".into()).await.expect("sent");
    }
    for (stream, _) in &mut open {
        until(stream, "data: a\n\n").await;
    }
    drop(open.pop());
    server.wait_long(MAX_LONG as u64 - 1).await;
    open.push(server.stream("/events").await);
    // A stop ends them all.
    let senders: Vec<_> = open.iter().map(|(_, sender)| sender.clone()).collect();
    server.stop.send_replace(true);
    for (stream, _) in &mut open {
        rest(stream).await;
    }
    for sender in senders {
        timeout(PATIENCE, sender.closed()).await.expect("closed");
    }
    timeout(PATIENCE, server.task)
        .await
        .expect("end")
        .expect("task");
}

#[tokio::test]
async fn clients_that_leave_a_long_answer_are_noticed() {
    let server = Server::start(Times::default()).await;
    for path in ["/stream", "/events"] {
        let (stream, sender) = server.stream(path).await;
        drop(stream);
        // Nothing is written meanwhile.
        timeout(PATIENCE, sender.closed()).await.expect("closed");
    }
    let mut stream = server.connect().await;
    let get = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(get).await.expect("request");
    let begun = server.echo.begun.notified();
    timeout(PATIENCE, begun).await.expect("begun");
    let sender = server.echo.streams.lock().expect("lock").pop();
    drop(stream);
    let sender = sender.expect("sender");
    timeout(PATIENCE, sender.closed()).await.expect("closed");
    server.wait_long(0).await;
    // A request behind a long answer is not answered, and one that waits gets its answer.
    let mut stream = server.connect().await;
    stream.write_all(get).await.expect("request");
    let begun = server.echo.begun.notified();
    timeout(PATIENCE, begun).await.expect("begun");
    stream.write_all(POST.as_bytes()).await.expect("request");
    server.echo.go.notify_one();
    let all = rest(&mut stream).await;
    status(&all, 200);
    assert!(all.ends_with("<GET /wait? >"), "{all}");
    // A flood behind it ends the connection.
    let (mut stream, sender) = server.stream("/stream").await;
    let flood = async { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} };
    timeout(PATIENCE, flood).await.expect("closed");
    timeout(PATIENCE, sender.closed()).await.expect("closed");
}

#[tokio::test]
async fn a_stream_that_is_not_read_ends() {
    let server = Server::hasty().await;
    let (_stream, sender) = server.stream("/stream").await;
    let piece = Bytes::from(vec![b'x'; MAX_BODY]);
    let fill = async { while sender.send(piece.clone()).await.is_ok() {} };
    timeout(PATIENCE, fill).await.expect("closed");
    server.wait_long(0).await;
    // One that has nothing to say stays.
    let (mut stream, sender) = server.stream("/stream").await;
    sleep(Duration::from_secs(1)).await;
    sender.send("here".into()).await.expect("sent");
    assert_eq!(until(&mut stream, "here").await, "4\r\nhere");
    // Events show that they are alive.
    let (mut stream, sender) = server.stream("/events").await;
    let alive = "9\r\n: alive\n\n\r\n".repeat(3);
    assert_eq!(until(&mut stream, &alive).await, alive);
    drop(sender);
}
