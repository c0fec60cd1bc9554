//! `tael pair`: a pipe between exactly two processes, over the broker.

mod copy;
mod end;
mod look;
mod streams;

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::pair::{Claim, Kind as LetterKind, Letter, Meeting, Pair, Side};
use crate::model::text::escaped_json;
use crate::model::{duration, json};
use crate::net::options::BrokerOptions;
use crate::os::logging::{say, show};
use crate::os::signals::{self, Stop};
use crate::os::terminal::Terminal;
use copy::{Copier, Ended};
use end::{End, Heard};
use look::Look;
use streams::Streams;

/// Maximum time until the broker answers.
const REACH: Duration = Duration::from_secs(30);

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(15);

/// Shortest and longest wait, milliseconds, of an end that was cut off before it was paired. It is random,
/// so that contestants part.
const AGAIN: (u64, u64) = (20, 200);

/// Maximum number of times that an end is cut off before it is paired. Five contestants at one instant need
/// a few.
const MAX_CUTS: u32 = 50;

/// Exit code after Ctrl-C, as in a shell: 128 and SIGINT.
const INTERRUPTED: u8 = 130;

/// Exit code when the reader of stdout is gone, as in a shell: 128 and SIGPIPE.
const UNREAD: u8 = 141;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials; with an identifier of our own.
    pub broker: BrokerOptions,
    /// The root of its topics.
    pub root: String,
    /// The pair.
    pub pair: Pair,
    /// Command whose input and output are used, for the shell; by default our own are.
    pub command: Option<String>,
    /// Maximum time until the other end comes.
    pub timeout: Option<Duration>,
    /// Whether to report states as JSON lines on stderr.
    pub json: bool,
}

/// Waits for the other end, and copies bytes both ways until both directions have ended. Returns the exit
/// code of the command, if there is one.
///
/// # Errors
/// 69 when the other end or the broker is lost, 73 when the pair is taken, 75 when no other end comes in
/// time, 77 when the broker does not authorise us.
pub fn run(options: &Options) -> Result<ExitCode> {
    signals::give_up_after(FAREWELL)?;
    let report = Report { json: options.json };
    match super::runtime()?.block_on(pair(options, &report)) {
        Err(e) if options.json => {
            let error = json!({"code": e.exit_code(), "error": e.to_string()});
            report.state("failed", error);
            Ok(ExitCode::from(e.exit_code()))
        }
        ended => ended.map(ExitCode::from),
    }
}

/// Reports states.
struct Report {
    json: bool,
}

impl Report {
    /// Reports `state` with the fields of the object `more`.
    fn state(&self, state: &str, more: Value) {
        if !self.json {
            return;
        }
        let mut line = Map::new();
        line.insert("state".into(), state.into());
        if let Value::Object(more) = more {
            line.extend(more);
        }
        show(&escaped_json(&json::to_text(&Value::Object(line))));
    }
}

async fn pair(options: &Options, report: &Report) -> Result<u8> {
    let mut stop = Stop::listen(false)?;
    let mut held = None;
    let sought = tokio::select! {
        biased;
        () = stop.requested() => None,
        sought = seek(options, report, &mut held) => Some(sought),
    };
    let (mut end, other) = match (sought, held) {
        (Some(Ok(other)), Some(end)) => (end, other),
        (sought, held) => {
            if let Some(end) = held {
                end.leave().await;
            }
            return match sought {
                Some(Err(e)) => Err(e),
                Some(Ok(_)) => Err(Error::bug("pair without an end")),
                None => Ok(INTERRUPTED),
            };
        }
    };
    report.state(
        "paired",
        json!({"side": end.side().name(), "with": other.object()}),
    );
    let streams = match &options.command {
        Some(line) => Streams::of_command(line),
        None => Streams::own(),
    };
    let mut streams = match streams {
        Ok(streams) => streams,
        Err(e) => {
            end.leave().await;
            return Err(e);
        }
    };
    let mut copy = Copier::new(&mut end, &other, &mut streams);
    let ended = tokio::select! {
        biased;
        () = stop.requested() => None,
        ended = copy.run() => Some(ended),
    };
    let in_order = matches!(ended, Some(Ok(Ended::Both)));
    if !in_order {
        copy.leave();
    }
    let (sent, received) = (copy.sent, copy.received);
    // The command may still run, with its output closed.
    let command = streams.command.take();
    drop(streams);
    end.leave().await;
    let code = match ended {
        None => INTERRUPTED,
        Some(Ok(Ended::Unread)) => UNREAD,
        Some(Err(e)) => return Err(e.context(format_args!("pair {}", options.pair.name))),
        Some(Ok(Ended::Both)) => match command {
            None => 0,
            Some(mut command) => {
                tokio::select! {
                    biased;
                    () = command.ended() => {}
                    () = stop.requested() => {}
                }
                command.end()
            }
        },
    };
    report.state(
        "ended",
        json!({"sent": sent, "received": received, "code": code}),
    );
    Ok(code)
}

/// Takes a free side, and waits for the other end. `held` is the side that we hold, also after an error.
async fn seek(options: &Options, report: &Report, held: &mut Option<End>) -> Result<Claim> {
    let pair = &options.pair;
    let start = Instant::now();
    let deadline = options.timeout.and_then(|limit| start.checked_add(limit));
    for _ in 0..MAX_CUTS {
        let reach = Instant::now() + REACH;
        let limit = options.timeout.map_or(REACH, |limit| limit.min(REACH));
        let mut look = Look::new(&options.broker, &options.root, pair)?;
        let by = deadline.map_or(reach, |deadline| deadline.min(reach));
        let side = look.free_side(by, limit).await?;
        let mut end = End::new(&options.broker, pair, side)?;
        let taken = tokio::select! {
            biased;
            claimed = look.until_claimed(side) => claimed.map(|()| false)?,
            online = end.online() => online?,
            () = sleep_until(deadline.unwrap_or(start)), if deadline.is_some() => {
                return Err(late(options));
            }
        };
        look.end();
        if taken {
            let end = held.insert(end);
            tokio::select! {
                biased;
                met = meet(end, pair, report) => match met? {
                    Some(other) => return Ok(other),
                    None => *held = None,
                },
                () = sleep_until(deadline.unwrap_or(start)), if deadline.is_some() => {
                    return Err(late(options));
                }
            }
        }
        debug!(
            "side {} of pair {} is another's; looking again",
            side.name(),
            pair.name
        );
        sleep(Duration::from_millis(fastrand::u64(AGAIN.0..=AGAIN.1))).await;
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "pair {}: the broker has ended the connection {MAX_CUTS} times; does it allow the identifiers \
             '{}' and '{}', or does another program use them?",
            pair.name,
            pair.client_id(Side::A),
            pair.client_id(Side::B),
        ),
    ))
}

/// Returns the error when no other end has come in time.
fn late(options: &Options) -> Error {
    let limit = duration::text(options.timeout.unwrap_or_default());
    let name = &options.pair.name;
    Error::new(
        Kind::TryAgain,
        format!("pair {name}: no other end came within {limit}"),
    )
}

/// Waits for the other end; `None` if the connection ends first.
async fn meet(end: &mut End, pair: &Pair, report: &Report) -> Result<Option<Claim>> {
    let mut meeting = Meeting::default();
    let mut reported = false;
    loop {
        let due = meeting.due().map(Instant::from_std);
        let now = || Instant::now().into_std();
        // In no order: strangers who flood the topic must not hold the hello.
        tokio::select! {
            heard = end.next() => match heard? {
                Heard::Claimed => {
                    meeting.claimed(now());
                    if !std::mem::replace(&mut reported, true) {
                        report.state("waiting", json!({"side": end.side().name()}));
                        if !report.json && Terminal::of_stderr().is_terminal() {
                            say(&format!("pair {}: waiting for the other end", pair.name));
                        }
                    }
                }
                Heard::Other(claim) => meeting.other(claim, now()),
                Heard::Letter(letter, _) => match letter.kind {
                    LetterKind::Hello if letter.to == end.claim.id => meeting.hello(letter.from),
                    _ => end.stray(),
                },
                Heard::Cut(cause) => {
                    debug!("cut off before the pair stood: {cause}");
                    return Ok(None);
                }
                Heard::Online | Heard::Nothing => {}
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some(to) = meeting.greet(now()) {
                    let hello = Letter {
                        kind: LetterKind::Hello,
                        from: end.claim.id.clone(),
                        to,
                        number: 0,
                    };
                    end.send(hello, Bytes::new())?;
                }
            }
        }
        if let Some(other) = meeting.paired() {
            return Ok(Some(other.clone()));
        }
    }
}
