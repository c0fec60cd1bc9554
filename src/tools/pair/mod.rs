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
use crate::model::pair::{Kind as LetterKind, Letter, Meeting, Pair, Side};
use crate::model::text::escaped_json;
use crate::model::{duration, json};
use crate::net::options::BrokerOptions;
use crate::os::logging::{say, show};
use crate::os::signals::{self, Stop};
use crate::os::stdout::stdout;
use crate::os::terminal::Terminal;
use copy::{Copier, Ended, Partner};
use end::{End, Heard};
use look::{Look, Looked};
use streams::{Running, Streams};

/// Maximum time until the broker answers.
const REACH: Duration = Duration::from_secs(30);

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(15);

/// Shortest and longest wait, milliseconds, of an end that another one has cut off while it looked. It is
/// random, so that contestants part; and doubles, for those whose link is slow.
const AGAIN: (u64, u64) = (10, 100);

/// Maximum number of doublings of that wait.
const MAX_DOUBLINGS: u32 = 4;

/// Maximum number of times that an end is cut off while it looks. Five contestants at one instant need a
/// few.
const MAX_CUTS: u32 = 50;

/// Maximum number of times that an end starts anew because the one that it has found is gone, or because
/// its connection has ended before it was paired.
const MAX_STARTS: u32 = 50;

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
/// 69 when the other end or the broker is lost, or the command of the other end has failed and ours has not, 73 when the pair is taken, 75 when no other end comes in
/// time, 77 when the broker does not authorise us.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.command.is_none() {
        stdout().map_err(|e| Error::cannot_create(format!("write to stdout: {e}")))?;
    }
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
    let (mut end, partner) = match (sought, held) {
        (Some(Ok(partner)), Some(end)) => (end, partner),
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
        json!({"side": end.side(), "with": partner.claim.object()}),
    );
    let streams = match &options.command {
        Some(line) => Streams::of_command(line, end.max_part()),
        None => Streams::own(end.max_part()),
    };
    let mut streams = match streams {
        Ok(streams) => streams,
        Err(e) => {
            end.leave().await;
            return Err(e);
        }
    };
    let mut copy = Copier::new(&mut end, partner, &mut streams);
    let ended = tokio::select! {
        biased;
        () = stop.requested() => None,
        ended = copy.run() => Some(ended),
    };
    let in_order = matches!(ended, Some(Ok(Ended::Both)));
    if !in_order {
        copy.leave();
    }
    let (sent, received, other_code) = (copy.sent, copy.received, copy.other_code);
    let failed = copy.failed_command();
    let command = streams.command.take();
    drop(streams);
    end.leave().await;
    let code = match ended {
        None => INTERRUPTED,
        Some(Ok(Ended::Unread)) => UNREAD,
        Some(Err(e)) => return Err(e.context(format_args!("pair {}", options.pair.name))),
        Some(Ok(Ended::Both)) => command.map_or(0, Running::end),
    };
    let failed = failed.filter(|_| code == 0);
    let code = failed.as_ref().map_or(code, Error::exit_code);
    report.state(
        "ended",
        json!({"sent": sent, "received": received, "code": code, "other_code": other_code}),
    );
    match failed {
        Some(e) if !report.json => Err(e.context(format_args!("pair {}", options.pair.name))),
        _ => Ok(code),
    }
}

/// Takes a free side, and waits for the other end. `held` is our end, also after an error.
async fn seek(options: &Options, report: &Report, held: &mut Option<End>) -> Result<Partner> {
    let deadline = options
        .timeout
        .and_then(|limit| Instant::now().checked_add(limit));
    for _ in 0..MAX_STARTS {
        if let Some(gone) = held.take() {
            gone.leave().await;
        }
        let end = held.insert(End::new(&options.broker, &options.pair, options.json)?);
        let met = tokio::select! {
            biased;
            met = start(end, options, report, deadline) => met?,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                return Err(late(options));
            }
        };
        if let Some(partner) = met {
            return Ok(partner);
        }
        sleep(again(0)).await;
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "pair {}: the other end, or our connection, was gone {MAX_STARTS} times before we were a pair",
            options.pair.name
        ),
    ))
}

/// Connects, takes a side, and waits for the other end; `None` if that must start anew.
async fn start(
    end: &mut End,
    options: &Options,
    report: &Report,
    deadline: Option<Instant>,
) -> Result<Option<Partner>> {
    let limit = options.timeout.map_or(REACH, |limit| limit.min(REACH));
    let reach = || {
        let reach = Instant::now() + REACH;
        deadline.map_or(reach, |deadline| deadline.min(reach))
    };
    end.present(reach(), limit).await?;
    let own = end.claim.clone();
    // Another end may see our claim, and say hello, before we know that we hold a side.
    let mut meeting = Meeting::new(own.id.clone());
    for cuts in 0..MAX_CUTS {
        let mut look = Look::new(&options.broker, &options.root, &options.pair, &own)?;
        let looked = tokio::select! {
            looked = look.take(reach(), limit) => looked,
            cut = end.cut(&mut meeting) => {
                debug!("cut off before the pair stood: {}", cut?);
                return Ok(None);
            }
        };
        look.end();
        match looked? {
            Looked::Holds(side) => {
                return meet(end, side, meeting, options, report).await;
            }
            Looked::Cut => tokio::select! {
                () = sleep(again(cuts)) => {}
                cut = end.cut(&mut meeting) => {
                    debug!("cut off before the pair stood: {}", cut?);
                    return Ok(None);
                }
            },
        }
    }
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "pair {}: the broker has ended the connection {MAX_CUTS} times; does it allow the identifier '{}', \
             or does another program use it?",
            options.pair.name,
            options.pair.claim_client(),
        ),
    ))
}

/// Returns a random wait after that many cuts.
fn again(cuts: u32) -> Duration {
    let wait = Duration::from_millis(fastrand::u64(AGAIN.0..=AGAIN.1));
    wait * (1 << cuts.min(MAX_DOUBLINGS))
}

/// Returns the error when no other end has come in time.
fn late(options: &Options) -> Error {
    let limit = duration::text(options.timeout.unwrap_or_default());
    let (name, root) = (&options.pair.name, &options.root);
    Error::new(
        Kind::TryAgain,
        format!(
            "pair {name}: no other end came within {limit}; has it the same name, broker and root, '{root}'?"
        ),
    )
}

/// Waits on `side` for the other end; `None` if it or the connection is gone before they are a pair.
async fn meet(
    end: &mut End,
    side: Side,
    mut meeting: Meeting,
    options: &Options,
    report: &Report,
) -> Result<Option<Partner>> {
    report.state("waiting", json!({"side": side.name()}));
    if !report.json && Terminal::of_stderr().is_terminal() {
        say(&format!(
            "pair {}, root {}: waiting for the other end",
            options.pair.name, options.root
        ));
    }
    let now = || Instant::now().into_std();
    let other = end.holds(side);
    let mut greet = meeting.other(other, now());
    loop {
        let leave = meeting.given_up().map(|to| (LetterKind::Leave, to));
        let hello = greet.take().or_else(|| meeting.greet());
        let hello = hello.map(|to| (LetterKind::Hello, to));
        for (kind, to) in leave.into_iter().chain(hello) {
            let letter = Letter {
                kind,
                from: end.claim.id.clone(),
                to,
                number: 0,
                proof: match (kind, &end.secret) {
                    (LetterKind::Hello, Some(secret)) => secret.public().to_owned(),
                    _ => String::new(),
                },
            };
            end.send(letter, Bytes::new())?;
        }
        if let Some((other, public)) = meeting.paired() {
            let secret = end.secret.take();
            let key = secret.and_then(|secret| secret.agree(&end.claim.id, &other.id, public));
            return Ok(key.map(|key| Partner {
                claim: other.clone(),
                public: public.to_owned(),
                key,
            }));
        }
        if meeting.is_over(now()) {
            debug!(
                "the other end is gone before the pair stood, or side {} is another's",
                side.name()
            );
            return Ok(None);
        }
        let due = meeting.due().map(Instant::from_std);
        // In no order: strangers who flood the topic must not hold what is due.
        tokio::select! {
            heard = end.next() => match heard? {
                Heard::Other(claim) => greet = meeting.other(claim, now()),
                Heard::Replaced(by) => meeting.replaced(&by),
                Heard::Presence(id, present) => meeting.presence(&id, present, now()),
                Heard::Letter(letter, _) => end.met(letter, &mut meeting),
                Heard::Cut(cause) => {
                    debug!("cut off before the pair stood: {cause}");
                    return Ok(None);
                }
                Heard::Nothing => {}
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}
