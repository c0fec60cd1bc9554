//! Entries for `systemd-journald`.
//!
//! Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. An entry is one datagram. Ours are far
//! smaller than those that need a file descriptor.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;

use tracing::Level;

use crate::model::env::sanitize;
use crate::model::text::printable;
use crate::os::logging::queue::{Queue, Sink};
use crate::os::logging::{MAX_LINE, Record, lost};

/// Socket of journald (`systemd-journald.service(8)`).
const SOCKET: &str = "/run/systemd/journal/socket";

/// Entries that wait for journald.
pub static JOURNAL: Queue = Queue::new(Sink {
    write: send,
    never_blocks: || false,
    is_ready: || false,
    lost: |count| {
        let record = Record::new(Level::WARN, lost(count));
        HEADER.get().map_or_else(Vec::new, |h| entry(h, &record))
    },
});

/// Fields of every entry.
static HEADER: OnceLock<Vec<u8>> = OnceLock::new();

/// Starts to write entries, with the field `TAEL_WHO` for a pipeline called `who`.
///
/// # Errors
/// When journald does not listen.
pub fn open(who: Option<&str>) -> io::Result<()> {
    // It may hang. A connection shows that it listens, and sends no datagram that might block.
    UnixDatagram::unbound()?.connect(SOCKET)?;
    let mut header = Vec::new();
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    put(&mut header, "SYSLOG_IDENTIFIER", &name.to_string_lossy());
    if let Some(who) = who {
        put(&mut header, "TAEL_WHO", who);
    }
    let _ = HEADER.set(header);
    Ok(())
}

/// Adds an entry.
pub fn write(record: &Record) {
    if let Some(header) = HEADER.get() {
        JOURNAL.push(entry(header, record));
    }
}

fn send(entry: &[u8]) -> io::Result<()> {
    static SENDER: OnceLock<UnixDatagram> = OnceLock::new();
    let sender = match SENDER.get() {
        Some(sender) => sender,
        None => {
            let socket = UnixDatagram::unbound()?;
            SENDER.get_or_init(|| socket)
        }
    };
    // By its path each time: journald may have been restarted.
    sender.send_to(entry, SOCKET).map(|_| ())
}

fn entry(header: &[u8], record: &Record) -> Vec<u8> {
    let mut entry = Vec::with_capacity(512);
    // Numbers of `syslog(3)`.
    let priority = match record.level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "TARGET", record.target);
    if let (Some(file), Some(line)) = (record.file, record.line) {
        put(&mut entry, "CODE_FILE", file);
        put(&mut entry, "CODE_LINE", &line.to_string());
    }
    entry.extend_from_slice(header);
    put(&mut entry, "MESSAGE", &record.message);
    for (name, value) in &record.fields {
        put(&mut entry, &sanitize(name), value);
    }
    entry
}

/// Adds a field, after its length, so that no value can end it early.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = printable(value, MAX_LINE);
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_as_journald_reads_it() {
        let mut record = Record::new(Level::WARN, "a\nFAKE=1".into());
        record.fields.push(("TAEL_TOPIC", "lab/\u{202e}".into()));
        let mut header = Vec::new();
        put(&mut header, "TAEL_WHO", "p");
        let got = entry(&header, &record);
        let mut want = Vec::new();
        for (name, value) in [
            ("PRIORITY", "4"),
            ("TARGET", "tael"),
            ("TAEL_WHO", "p"),
            ("MESSAGE", "a\\nFAKE=1"),
            ("TAEL_TOPIC", "lab/\\u{202e}"),
        ] {
            want.extend_from_slice(name.as_bytes());
            want.push(b'\n');
            want.extend_from_slice(&(value.len() as u64).to_le_bytes());
            want.extend_from_slice(value.as_bytes());
            want.push(b'\n');
        }
        assert_eq!(got, want);
    }
}
