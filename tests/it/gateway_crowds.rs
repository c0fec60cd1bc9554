//! `tael gateway` and callers that take all they can get: others are served meanwhile.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};

use crate::common::gateway::{Answer, Gateway, post, request};
use crate::common::{Certificates, Process, World, wait_until};
use crate::gateway_tls;

/// Number of connections of a crowd: more than there are places and turns.
const CROWD: usize = 400;

/// Address of the crowd. Others come from 127.0.0.1.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Maximum time of a request while a crowd is there: a quarter of a second, and more where other tests run.
/// Without its share it would wait for five seconds at least.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a connection of a crowd does.
#[derive(Clone)]
struct Way {
    name: &'static str,
    /// What it sends first.
    start: String,
    /// What it sends now and then.
    drip: &'static str,
    reads: bool,
}

/// Maximum memory of the gateway, KiB. A debug build takes 40,000 at rest.
const MEMORY: u64 = 200_000;

/// Connects from `from` to the gateway; without memory for what comes if it does not read.
fn connect_from(from: Ipv4Addr, gateway: &Gateway, reads: bool) -> std::io::Result<TcpStream> {
    let own = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    if !reads {
        sockopt::set_socket_recv_buffer_size(&own, 2048)?;
    }
    bind(&own, &SocketAddrV4::new(from, 0))?;
    connect(
        &own,
        &gateway.address.parse::<SocketAddrV4>().expect("address"),
    )?;
    Ok(TcpStream::from(own))
}

impl Way {
    fn open(&self, gateway: &Gateway) -> Option<TcpStream> {
        let mut stream = connect_from(ELSEWHERE, gateway, self.reads).ok()?;
        stream.write_all(self.start.as_bytes()).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    }

    /// Goes on with a connection; returns whether it is still there.
    fn goes_on(&self, stream: &mut TcpStream) -> bool {
        let is_there = |done: std::io::Result<usize>, at_end: bool| match done {
            Ok(0) => at_end,
            Ok(_) => true,
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        };
        let mut bytes = [0; 4096];
        (!self.reads || is_there(stream.read(&mut bytes), false))
            && is_there(stream.write(self.drip.as_bytes()), true)
    }

    /// Keeps a crowd at the gateway until `is_over`.
    fn crowd(&self, gateway: &Gateway, is_there: &AtomicBool, is_over: &AtomicBool) {
        let mut streams: Vec<Option<TcpStream>> = Vec::new();
        streams.resize_with(CROWD, || None);
        while !is_over.load(Ordering::Relaxed) {
            for slot in &mut streams {
                if !slot.as_mut().is_some_and(|stream| self.goes_on(stream)) {
                    *slot = self.open(gateway);
                }
            }
            is_there.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Calls `each` ten times while a crowd is at the gateway, which must not take long.
fn while_crowded(gateway: &Gateway, way: &Way, each: impl Fn()) {
    let (is_there, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| way.crowd(gateway, &is_there, &is_over));
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("the crowd is there", || is_there.load(Ordering::Relaxed));
            for n in 0..10 {
                let begun = Instant::now();
                each();
                let spent = begun.elapsed();
                assert!(spent < PATIENCE, "{}, {n}: {spent:?}", way.name);
                thread::sleep(Duration::from_millis(50));
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        tried.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
}

fn way(name: &'static str, start: &str, drip: &'static str) -> Way {
    Way {
        name,
        start: start.to_owned(),
        drip,
        reads: true,
    }
}

#[test]
fn a_crowd_from_one_address_holds_up_no_others() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let host = "Host: localhost\r\n";
    let health = format!("GET /healthz HTTP/1.1\r\n{host}\r\n");
    let page = format!("GET / HTTP/1.1\r\n{host}\r\n");
    let body = format!("POST /t/lab/a HTTP/1.1\r\n{host}Content-Length: 1000000\r\n\r\n");
    let stream = format!("GET /api/stream HTTP/1.1\r\n{host}\r\n");
    let unread = Way {
        reads: false,
        ..way("answers that are not read", &page.repeat(500), "")
    };
    for way in [
        way("nothing", "", ""),
        way(
            "slow heads",
            &format!("POST /t/lab/a HTTP/1.1\r\n{host}X: "),
            "x",
        ),
        way("idle", &health, ""),
        way("slow bodies", &body, "x"),
        unread,
        way("streams", &stream, ""),
        Way {
            reads: false,
            ..way("streams that are not read", &stream, "")
        },
    ] {
        while_crowded(&gateway, &way, || {
            let answer = gateway.post("/t/lab/a", &[], "{}");
            assert_eq!(answer.status, 202, "{}: {answer:?}", way.name);
        });
    }
    gateway.process.stop();
}

#[test]
fn streams_of_one_address_leave_room_for_those_of_others() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let line = "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
    while_crowded(&gateway, &way("streams", line, ""), || {
        let mut own = gateway.connect();
        own.write_all(line.as_bytes()).expect("request");
        let mut start = [0; 12];
        own.read_exact(&mut start).expect("answer");
        assert_eq!(&start, b"HTTP/1.1 200");
    });
    gateway.process.stop();
}

#[test]
fn the_last_request_that_waits_is_answered_early_when_others_want_to_wait() {
    /// Number of requests that may wait.
    const WAITING: usize = 256;
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let wait = post("/t/lab/silent?wait=10m", &[], "{}");
    let is_waiting = |count: usize| {
        let metrics = gateway.get("/metrics").body;
        metrics.contains(&format!("\ntael_gateway_long_answers {count}\n"))
    };
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let mut stream = connect_from(ELSEWHERE, &gateway, true).expect("connect");
        stream.write_all(wait.as_bytes()).expect("request");
        waiting.push(stream);
        // The last one is known.
        if waiting.len() == WAITING - 1 {
            wait_until("most wait", || is_waiting(WAITING - 1));
        }
    }
    wait_until("all wait", || is_waiting(WAITING));
    let own = gateway.post("/t/lab/silent?wait=100ms", &[], "{}");
    assert_eq!(own.status, 202, "{own:?}");
    let mut text = String::new();
    let mut last = waiting.pop().expect("the last one");
    last.read_to_string(&mut text).expect("answer");
    let answer = Answer::parse(&text);
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["pending"], true, "{answer:?}");
    wait_until("the others wait", || is_waiting(WAITING - 1));
    gateway.process.stop();
}

/// Posts a message, which is accepted in time.
#[track_caller]
fn is_served(gateway: &Gateway) {
    let begun = Instant::now();
    let answer = gateway.post("/t/lab/a", &[], "{}");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn requests_that_wait_for_a_silent_broker_of_queues_hold_up_no_others() {
    let world = World::new();
    // It accepts connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    let port = silent.local_addr().expect("address").port();
    let arguments = [
        (
            "TAEL_QUEUE_BROKER",
            format!("amqp://guest@127.0.0.1:{port}"),
        ),
        ("TAEL_QUEUE_PASSWORD", "guest".to_owned()),
    ];
    let mut command = world.tael(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"]);
    command.args(["--rate", "0", "--allow-queue", "q", "--timeout", "30s"]);
    command.envs(arguments);
    let gateway = Gateway::listening(world.spawn(command));
    gateway.wait_health(200);
    let text = post("/q/q", &[], "{}");
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let mut stream = connect_from(ELSEWHERE, &gateway, true).expect("connect");
        stream.write_all(text.as_bytes()).expect("request");
        waiting.push(stream);
    }
    for _ in 0..5 {
        is_served(&gateway);
    }
    drop(waiting);
    gateway.process.stop();
}

/// Serves the socket of a client with type of work `hang`, which takes work and answers nothing. Returns how
/// much it has taken.
fn client_that_hangs(world: &World) -> Arc<AtomicUsize> {
    let folder = world.state().join("hang");
    std::fs::create_dir_all(&folder).expect("folder");
    let listener = UnixListener::bind(folder.join("control")).expect("socket");
    let taken = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&taken);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, taken) = (stream.expect("connection"), Arc::clone(&counted));
            thread::spawn(move || {
                let _ = stream.write_all(b"Receptor Control, node hang\n");
                let mut line = String::new();
                let mut lines = BufReader::new(stream.try_clone().expect("stream"));
                let _ = lines.read_line(&mut line);
                if line == "status\n" {
                    let about =
                        "{\"Advertisements\":[{\"WorkCommands\":[{\"WorkType\":\"hang\"}]}]}\n";
                    let _ = stream.write_all(about.as_bytes());
                } else if !line.is_empty() {
                    taken.fetch_add(1, Ordering::Relaxed);
                    let _ = lines.read_to_end(&mut Vec::new());
                    thread::park();
                }
            });
        }
    });
    taken
}

#[test]
fn work_for_a_client_that_hangs_leaves_room_for_that_of_others() {
    let world = World::new();
    let work = "[[work]]\ntype = \"quick\"\ncommand = \"true\"\n";
    let route = "[[route]]\nname = \"hang\"\npath = \"/hooks/hang\"\nwork = \"localhost/hang\"\n";
    let config = world.file("quick.toml", work);
    let client = world.client("quick", &["--config", &config]);
    let taken = client_that_hangs(&world);
    let routes = world.file("gateway.toml", route);
    let allowed = [
        "--allow-work",
        "localhost/hang",
        "--allow-work",
        "localhost/quick",
    ];
    let gateway = Gateway::online(&world, &[&allowed[..], &["--config", &routes]].concat());
    // Two addresses, by both ways to work.
    let mut waiting = Vec::new();
    for n in 0..60 {
        let from = Ipv4Addr::new(127, 0, 0, 2 + n % 2);
        let path = ["/w/localhost/hang", "/hooks/hang"][usize::from(n) / 30];
        let mut stream = connect_from(from, &gateway, true).expect("connect");
        stream
            .write_all(post(path, &[], "{}").as_bytes())
            .expect("request");
        waiting.push(stream);
    }
    wait_until("they hang", || taken.load(Ordering::Relaxed) >= 4);
    for _ in 0..5 {
        let begun = Instant::now();
        let answer = gateway.post("/w/localhost/quick", &[], "x");
        assert_eq!(answer.status, 202, "{answer:?}");
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
    drop(waiting);
    gateway.process.kill();
    client.stop();
}

#[test]
fn slow_bodies_of_as_many_addresses_as_there_are_places_hold_up_no_others() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let text = "POST /t/lab/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n";
    let mut slow = Vec::new();
    for n in 2..66 {
        let from = Ipv4Addr::new(127, 0, 0, n);
        let mut stream = connect_from(from, &gateway, true).expect("connect");
        stream.write_all(text.as_bytes()).expect("request");
        slow.push(stream);
    }
    is_served(&gateway);
    drop(slow);
    gateway.process.stop();
}

#[test]
fn a_request_that_waits_for_memory_is_answered_when_others_want_to_wait() {
    /// Number of requests that may wait.
    const WAITING: usize = 256;
    let world = World::new();
    let loud = "[[work]]\ntype = \"loud\"\n\
        command = \"sh -c 'head -c 262144 /dev/zero | tee /dev/stderr'\"\n";
    let config = world.file("loud.toml", loud);
    let client = world.client("loud", &["--config", &config]);
    let gateway = Gateway::online(&world, &["--allow-work", "localhost/loud"]);
    let unit = gateway.post("/w/localhost/loud?wait=1m", &[], "").json();
    let unit = unit["unit"].as_str().expect("unit");
    let text = request(&format!("GET /units/{unit}?wait=1m"), &[]);
    let answered = || {
        let text = gateway.get("/metrics").body;
        let mut lines = text.lines();
        let number =
            lines.find_map(|line| line.strip_prefix("tael_gateway_answers_total{code=\"202\"} "));
        number.map_or(0, |number| number.parse::<usize>().expect("number"))
    };
    let mut waiting = Vec::new();
    let mut own_answers = 0;
    wait_until("one that gives way is answered", || {
        // They wait for a few seconds only, and the last one may have its answer already: then again.
        waiting.clear();
        for _ in 0..WAITING {
            // Their answers are not read, so that memory is used up.
            let mut stream = connect_from(ELSEWHERE, &gateway, false).expect("connect");
            stream.write_all(text.as_bytes()).expect("request");
            waiting.push(stream);
        }
        for _ in 0..10 {
            let own = gateway.post("/t/lab/silent?wait=100ms", &[], "{}");
            assert!([202, 503].contains(&own.status), "{own:?}");
            own_answers += usize::from(own.status == 202);
            if answered() > own_answers {
                return true;
            }
        }
        false
    });
    drop(waiting);
    gateway.process.stop();
    client.stop();
}

#[test]
fn handshakes_of_one_address_hold_up_no_others() {
    let world = World::new();
    let certificates = Certificates::make(&world.path(""));
    let [cert, key, ca] =
        ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    let gateway = Gateway::start(&world, &["--tls-cert", &cert, "--tls-key", &key]);
    let ask = |text: &str| gateway_tls::ask(&gateway, &ca, text);
    let health = request("GET /healthz", &[]);
    wait_until("it is online", || {
        ask(&health).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    // The beginning of a record, and no more.
    for (start, drip) in [("", ""), ("\x16\x03\x01\x01\x00\x01", "")] {
        while_crowded(&gateway, &way("handshakes", start, drip), || {
            let answer = ask(&post("/t/lab/a", &[], "{}")).expect("answer");
            assert_eq!(Answer::parse(&answer).status, 202, "{answer}");
        });
    }
    gateway.process.stop();
}

#[test]
fn connections_that_are_one_too_many_are_told_so_however_many_there_are() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let body = "POST /t/lab/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n";
    // One address has all the places and all the turns.
    let mut first = Vec::new();
    for _ in 0..64 {
        let mut stream = gateway.connect();
        stream.write_all(body.as_bytes()).expect("request");
        first.push(stream);
    }
    wait_until("all have places", || {
        // Its own connection waits for a place.
        let text = gateway.exchange(request("GET /metrics", &[]));
        text.contains("\ntael_gateway_connections 64\n") || text.starts_with("HTTP/1.1 503")
    });
    let waiting: Vec<TcpStream> = (0..256).map(|_| gateway.connect()).collect();
    let mut others: Vec<TcpStream> = (0..300).map(|_| gateway.connect()).collect();
    let begun = Instant::now();
    for stream in &mut others {
        let mut text = String::new();
        // All of it is there before the end, which may be a reset.
        let _ = stream.read_to_string(&mut text);
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(
            text.ends_with("{\"error\":\"too many connections\"}\n"),
            "{text}"
        );
    }
    // The first ones were there meanwhile.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    drop((first, waiting));
    gateway.process.stop();
}

/// Returns the most memory that a process has had, KiB.
fn peak(gateway: &Gateway) -> u64 {
    let path = format!("/proc/{}/status", gateway.process.pid());
    let text = std::fs::read_to_string(path).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("VmHWM").parse().expect("number")
}

/// Returns a client with a unit that has written much, a gateway to it, and the request for its answer of 3 MiB.
fn large_answer(world: &World) -> (Process, Gateway, String) {
    let loud = "[[work]]\ntype = \"loud\"\n\
        command = \"sh -c 'head -c 262144 /dev/zero | tee /dev/stderr'\"\n";
    let config = world.file("loud.toml", loud);
    let client = world.client("loud", &["--config", &config]);
    let gateway = Gateway::online(world, &["--allow-work", "localhost/loud"]);
    let unit = gateway.post("/w/localhost/loud", &[], "").id();
    (client, gateway, format!("GET /units/{unit}?wait=1m"))
}

#[test]
fn large_answers_that_many_addresses_do_not_read_make_room_for_others() {
    let world = World::new();
    let (client, gateway, line) = large_answer(&world);
    assert_eq!(gateway.ask(&line, &[]).status, 200);
    let mut callers = Vec::new();
    for n in 0..24 {
        let from = Ipv4Addr::new(127, 0, 0, 2 + n % 12);
        let mut stream = connect_from(from, &gateway, false).expect("connect");
        let text = request(&line, &[]);
        stream.write_all(text.as_bytes()).expect("request");
        callers.push(stream);
    }
    for n in 0..5 {
        let begun = Instant::now();
        let answer = gateway.ask(&line, &[]);
        let spent = begun.elapsed();
        assert_eq!(answer.status, 200, "{n}: {spent:?} {}", answer.head);
    }
    drop(callers);
    gateway.process.stop();
    client.stop();
}

#[test]
fn large_answers_that_are_not_read_take_bounded_memory() {
    /// Number of callers who do not read. Each answer has 3 MiB.
    const CALLERS: usize = 250;
    let world = World::new();
    let (client, gateway, line) = large_answer(&world);
    let whole = || {
        let answer = gateway.ask(&line, &[]);
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(answer.body.len() > 6 * 2 * 262_144, "{}", answer.body.len());
    };
    whole();
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let mut stream = connect_from(ELSEWHERE, &gateway, false).expect("connect");
        let text = request(&line, &[]);
        stream.write_all(text.as_bytes()).expect("request");
        callers.push(stream);
    }
    // The memory of one address is used up, and others have theirs.
    for _ in 0..5 {
        whole();
    }
    let answered = |code: &str| {
        let start = format!("tael_gateway_answers_total{{code=\"{code}\"}} ");
        let text = gateway.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or(0, |number| number.parse::<usize>().expect("number"))
    };
    wait_until("all are answered", || answered("503") + 50 > CALLERS);
    let peak = peak(&gateway);
    assert!(peak < MEMORY, "{peak} KiB");
    drop(callers);
    // Those who read it get it.
    for _ in 0..10 {
        whole();
    }
    gateway.process.stop();
    client.stop();
}
