//! The commands, one file each: their work, with options that were checked.

pub mod beacon;
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod check;
pub mod client;
pub mod control;
#[cfg(feature = "embedded-broker")]
pub mod demo;
pub mod dry_run;
pub mod events;
pub mod facts;
pub mod forget;
pub mod gateway;
pub mod lines;
pub mod message;
pub mod node;
pub mod pair;
pub mod play;
pub mod preflight;
mod printer;
pub mod queue;
pub mod roots;
pub mod status;
pub mod watch;
pub mod work;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};
use crate::model::json;
use crate::model::text::{escaped_json, for_screen};
use crate::net::mqtt::Settings;
use crate::net::options::BrokerOptions;
use crate::os::logging::finish;
use crate::os::process::descriptor_limit;
use crate::os::stdout::stdout;

/// Minimum number of descriptors of a command.
const MIN_DESCRIPTORS: u64 = 32;

/// Bytes of a long text that are printed at a time.
const PART: usize = 64 * 1024;

/// Maximum number of threads for work that blocks: more than all kinds of it in a gateway may have at a time,
/// so that one kind does not hold up another. They exist while they are needed.
const BLOCKING_THREADS: usize = 32;

/// Returns a runtime with a single thread, because commands mostly wait. Names are looked up in
/// threads of their own, for which the runtime does not wait at its end.
fn runtime() -> Result<Runtime> {
    // With fewer, parts of the runtime fail one by one, some of them without an error.
    if let Some(limit) = descriptor_limit().filter(|limit| *limit < MIN_DESCRIPTORS) {
        return Err(Error::cannot_create(format!(
            "start: {limit} open files are allowed, {MIN_DESCRIPTORS} are needed: ulimit -n"
        )));
    }
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|e| Error::bug(format!("start the runtime: {e}")))
}

/// Maximum size of a packet that is read, bytes. A packet full of short properties takes sixteen
/// times its size in memory. A broker does not send larger ones (MQTT 5.0, section 3.1.2.11.4).
const MAX_PACKET: u32 = 2 * 1024 * 1024;

/// Maximum size of a payload that is read, bytes.
const MAX_PAYLOAD: usize = MAX_PACKET as usize;

/// Returns the settings of a connection that subscribes.
fn listener(broker: &BrokerOptions) -> Settings {
    Settings {
        max_packet: MAX_PACKET,
        receive_maximum: 256,
        ..message::sender(broker)
    }
}

/// Ends the process quietly if the reader of stdout is gone, as with `head`.
fn ended_by_reader(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        finish();
        std::process::exit(128 + nix::libc::SIGPIPE)
    }
}

/// Checks that stdout was not closed, for commands that do something and then say it: otherwise they would fail
/// when it is done.
///
/// # Errors
/// When it was closed (73).
fn check_stdout() -> Result<()> {
    stdout().map(drop).map_err(|e| unwritable(&e))
}

/// Returns the error of output that could not be written. If its reader is gone, the process ends quietly
/// instead, as by SIGPIPE.
fn unprinted(error: &io::Error) -> Error {
    ended_by_reader(error);
    unwritable(error)
}

fn unwritable(error: &io::Error) -> Error {
    Error::cannot_create(format!("write to stdout: {error}"))
}

/// Prints a line on stdout.
fn print(line: &str) -> Result<()> {
    print_part(&format!("{line}\n"))
}

/// Prints `text` on stdout. If its reader is gone, the process ends quietly, as by SIGPIPE.
///
/// # Errors
/// When stdout cannot be written (73).
pub fn print_part(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints `bytes` as they are, in the same way.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    write_bytes(bytes).map_err(|e| unprinted(&e))
}

/// Writes a line to stdout.
fn write_line(line: &str) -> io::Result<()> {
    write_bytes(format!("{line}\n").as_bytes())
}

fn write_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = stdout()?.lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Prints text of others: as it is for a program, and on a terminal so that it cannot control that.
///
/// # Errors
/// When stdout cannot be written (73).
fn print_foreign(bytes: &[u8]) -> Result<()> {
    match io::stdout().is_terminal() {
        true => print_bytes(for_screen(bytes).as_bytes()),
        false => print_bytes(bytes),
    }
}

/// Prints JSON on a line of stdout.
fn print_json(value: &Value) -> Result<()> {
    print(&escaped_json(&json::to_text(value)))
}

/// Prints texts of JSON as an array, on a line of stdout, without a text of the whole.
fn print_array(items: impl IntoIterator<Item = String>) -> Result<()> {
    let mut part = "[".to_owned();
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            part.push(',');
        }
        part.push_str(&escaped_json(&item));
        if part.len() >= PART {
            print_part(&part)?;
            part.clear();
        }
    }
    part.push_str("]\n");
    print_part(&part)
}

/// Returns an exit code from elsewhere, within the range of a process.
fn exit_code(code: i64) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Returns a field of a JSON object as text.
fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}
