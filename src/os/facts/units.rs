//! Failed units of systemd, asked on the bus of the system: one connection, two calls, no process.
//!
//! Sources: the D-Bus specification (dbus.freedesktop.org/doc/dbus-specification.html) for the bytes,
//! and `org.freedesktop.systemd1(5)` for the call. Every user may make it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Maximum time for all of it. A host that takes longer has no such fact.
const MAX_TIME: Duration = Duration::from_millis(500);

/// Maximum size of a message, and number of messages until the answer. The bus sends its own first.
const MAX_MESSAGE: usize = 1024 * 1024;
const MAX_MESSAGES: usize = 16;

/// Maximum number of names.
const MAX_NAMES: usize = 16;

/// Maximum length of a line of the handshake, bytes.
const MAX_LINE: usize = 256;

/// Byte order of our messages. The bus and systemd are on this host, and have the same one.
const ORDER: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};

/// Types of messages.
const CALL: u8 = 1;
const RETURN: u8 = 2;

/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Serial of the call that is answered by the units.
const ASKED: u32 = 2;

/// Units that have failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Number of all.
    pub count: usize,
    /// Names of the first ones, in order.
    pub names: Vec<String>,
}

/// Returns the failed units; `None` if the bus at `path` does not say.
pub(super) fn failed(path: &Path) -> Option<Failed> {
    let deadline = Instant::now() + MAX_TIME;
    let mut bus = Bus {
        stream: open(path)?,
        deadline,
    };
    // The identity is that of the socket (SASL EXTERNAL), which holds in user namespaces too. The rest
    // does not wait for the answers, as in sd-bus.
    let mut text = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".to_vec();
    text.extend(call(
        1,
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "Hello",
        None,
    ));
    let mut body = Writer::default();
    body.list(|body| body.text("failed"));
    let manager = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1");
    text.extend(call(
        ASKED,
        manager.0,
        manager.1,
        "ListUnitsFiltered",
        Some(&body.0),
    ));
    bus.stream.set_write_timeout(Some(MAX_TIME)).ok()?;
    bus.stream.write_all(&text).ok()?;
    if bus.line()? != "DATA" || !bus.line()?.starts_with("OK ") {
        return None;
    }
    for _ in 0..MAX_MESSAGES {
        let message = bus.message()?;
        if message.reply_to == Some(ASKED) {
            return (message.kind == RETURN).then(|| units(&message.body))?;
        }
    }
    None
}

/// Connects, without waiting for a bus that takes no connections.
fn open(path: &Path) -> Option<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).ok()?;
    Some(stream)
}

/// Returns a method call; the body is an array of strings.
fn call(serial: u32, path: &str, service: &str, member: &str, body: Option<&[u8]>) -> Vec<u8> {
    let interface = match body {
        Some(_) => format!("{service}.Manager"),
        None => service.to_owned(),
    };
    let mut message = Writer(vec![ORDER, CALL, 0, 1]);
    message.number(body.map_or(0, <[u8]>::len));
    message.0.extend(serial.to_ne_bytes());
    message.list(|fields| {
        for (code, kind, text) in [
            (PATH, b'o', path),
            (INTERFACE, b's', &interface),
            (MEMBER, b's', member),
            (DESTINATION, b's', service),
        ] {
            fields.align(8);
            fields.0.extend([code, 1, kind, 0]);
            fields.text(text);
        }
        if body.is_some() {
            fields.align(8);
            fields.0.extend(*b"\x08\x01g\0\x02as\0");
        }
    });
    message.align(8);
    message.0.extend(body.unwrap_or_default());
    message.0
}

/// A message that is being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: usize) {
        self.align(4);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.0.extend(number.to_ne_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// Writes an array, whose size comes first. Its elements are aligned already.
    fn list(&mut self, fill: impl FnOnce(&mut Self)) {
        self.number(0);
        let start = self.0.len();
        fill(self);
        let size = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        let place = self.0.get_mut(start - 4..start);
        if let Some(place) = place {
            place.copy_from_slice(&size.to_ne_bytes());
        }
    }
}

/// A message of the bus.
struct Received {
    kind: u8,
    reply_to: Option<u32>,
    body: Vec<u8>,
}

/// The connection.
struct Bus {
    stream: UnixStream,
    deadline: Instant,
}

impl Bus {
    fn read(&mut self, bytes: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let left = self.deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would be none.
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).ok()?;
            match self.stream.read(rest) {
                Ok(0) => return None,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// Returns a line of the handshake. What follows it is left to be read.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.extend(byte);
            if line.len() > MAX_LINE {
                return None;
            }
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).ok()
    }

    fn message(&mut self) -> Option<Received> {
        let mut start = [0; 16];
        self.read(&mut start)?;
        let mut head = Reader::new(&start);
        let (order, kind) = (head.byte()?, head.byte()?);
        let (body, _, fields) = (head.skip(2)?.number()?, head.number()?, head.number()?);
        if order != ORDER || fields.checked_add(body)? > MAX_MESSAGE {
            return None;
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.read(&mut rest)?;
        let body = rest.split_off(fields.next_multiple_of(8));
        rest.truncate(fields);
        let reply_to = reply_serial(&rest);
        Some(Received {
            kind,
            reply_to,
            body,
        })
    }
}

/// Returns the serial of the call that header `fields` name.
fn reply_serial(fields: &[u8]) -> Option<u32> {
    let mut fields = Reader::new(fields);
    loop {
        let code = fields.align(8)?.byte()?;
        // Each value has a signature of one letter.
        let kind = fields.skip(1)?.byte()?;
        fields.skip(1)?;
        match (code, kind) {
            (REPLY_SERIAL, b'u') => return u32::try_from(fields.number()?).ok(),
            (_, b'u') => drop(fields.number()?),
            (SIGNATURE, b'g') => {
                let size = fields.byte()?;
                fields.skip(usize::from(size) + 1)?;
            }
            (_, b's' | b'o') => drop(fields.text()?),
            _ => return None,
        }
    }
}

/// Returns the units of an answer: an array of (name, description, four states, path, job, its type
/// and path).
fn units(body: &[u8]) -> Option<Failed> {
    let mut body = Reader::new(body);
    let size = body.number()?;
    body.align(8)?;
    let end = body.at.checked_add(size)?;
    let mut names = Vec::new();
    while body.at < end {
        names.push(body.align(8)?.text()?.to_owned());
        for _ in 0..6 {
            body.text()?;
        }
        body.number()?;
        body.text()?;
        body.text()?;
    }
    names.sort();
    let count = names.len();
    names.truncate(MAX_NAMES);
    Some(Failed { count, names })
}

/// Bytes that are read, in our byte order.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<&mut Self> {
        self.take(count)?;
        Some(self)
    }

    /// Skips padding. There is none at the end.
    fn align(&mut self, to: usize) -> Option<&mut Self> {
        let next = self.at.next_multiple_of(to);
        self.at = next;
        (next <= self.bytes.len()).then_some(self)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.align(4)?.take(4)?;
        let number = u32::from_ne_bytes(bytes.try_into().ok()?);
        usize::try_from(number).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let size = self.number()?;
        let text = self.take(size)?;
        self.skip(1)?;
        str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Returns a body with units of these names.
    fn body(names: &[&str]) -> Vec<u8> {
        let mut body = Writer::default();
        body.0.extend([0; 8]);
        for name in names {
            body.align(8);
            for text in [name, "what it is", "loaded", "failed", "failed", "", "/x"] {
                body.text(text);
            }
            body.number(0);
            body.text("");
            body.text("/");
        }
        let size = u32::try_from(body.0.len() - 8).expect("size");
        body.0[..4].copy_from_slice(&size.to_ne_bytes());
        body.0
    }

    /// Returns a message of this type that answers `serial`, after a field that has a text.
    fn answer(kind: u8, serial: u32, body: &[u8]) -> Vec<u8> {
        let mut message = Writer(vec![ORDER, kind, 0, 1]);
        message.number(body.len());
        message.number(9);
        message.list(|fields| {
            fields.0.extend([7, 1, b's', 0]);
            fields.text(":1.0");
            fields.align(8);
            fields.0.extend(*b"\x08\x01g\0\x01u\0");
            fields.align(8);
            fields.0.extend([REPLY_SERIAL, 1, b'u', 0]);
            fields.0.extend(serial.to_ne_bytes());
        });
        message.align(8);
        message.0.extend(body);
        message.0
    }

    /// Asks a bus that says `text`, and then holds the connection.
    fn asked(text: Vec<u8>) -> Option<Failed> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).expect("bind");
        thread::scope(|scope| {
            let bus = scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("accept");
                let _ = stream.write_all(&text);
                // Until the other side has had enough.
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard);
                heard
            });
            let found = failed(&path);
            let heard = bus.join().expect("bus");
            assert!(heard.starts_with(b"\0AUTH EXTERNAL\r\n"), "{heard:?}");
            found
        })
    }

    fn said(parts: &[&[u8]]) -> Vec<u8> {
        let start: &[u8] = b"DATA\r\nOK 0123456789abcdef\r\n";
        [&[start], parts].concat().concat()
    }

    #[test]
    fn the_failed_units_are_those_of_the_answer() {
        let hello = answer(RETURN, 1, b"\x04\0\0\0:1.7\0");
        let own = answer(4, 0, b"");
        let two = answer(RETURN, ASKED, &body(&["b.service", "a.timer"]));
        let want = Failed {
            count: 2,
            names: vec!["a.timer".into(), "b.service".into()],
        };
        assert_eq!(asked(said(&[&hello, &own, &two])), Some(want));
        let none = answer(RETURN, ASKED, &body(&[]));
        assert_eq!(asked(said(&[&none])).map(|failed| failed.count), Some(0));
        let many: Vec<String> = (0..40).map(|n| format!("u{n:02}.service")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let many = asked(said(&[&answer(RETURN, ASKED, &body(&many))])).expect("units");
        assert_eq!((many.count, many.names.len()), (40, MAX_NAMES));
        assert_eq!(many.names[0], "u00.service");
    }

    #[test]
    fn a_bus_that_does_not_say_gives_no_fact() {
        let begun = Instant::now();
        let error = answer(3, ASKED, b"");
        let huge = [answer(RETURN, ASKED, b"")[..4].to_vec(), vec![0xff; 12]].concat();
        let short = answer(RETURN, ASKED, &body(&["a.service"])[..20]);
        for text in [
            said(&[&error]),
            said(&[&huge]),
            said(&[&short]),
            b"REJECTED EXTERNAL\r\n".to_vec(),
            vec![b'x'; 1000],
            said(&[&answer(4, 0, b"").repeat(20)]),
            said(&[]),
        ] {
            assert_eq!(asked(text), None);
        }
        assert_eq!(failed(Path::new("/no/such/bus")), None);
        // Only the last one was waited for.
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>()) {
            let _ = (units(&bytes), reply_serial(&bytes));
        }
    }
}
